"""Agent profiles: how each coding agent is started, continued and kept from asking first-run questions."""
