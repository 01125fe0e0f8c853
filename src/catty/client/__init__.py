"""The user's side: REST client, attach link, upload, download, sync-back, local state, secrets."""
