"""`catty download`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from catty.cli.context import Cli, complete_labels, pass_cli
from catty.cli.output import Steps, note, size
from catty.client.text import printable

if TYPE_CHECKING:
    from catty.client.upload import Progress

__all__ = ["download"]


@click.command(epilog="Example: `catty download brave-tiger-1234 result`")
@click.argument("label", shell_complete=complete_labels)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(["dir", "tar.gz"]), default="dir", show_default=True, help="What to make."
)
@click.option("--at", "snapshot", type=int, metavar="SNAPSHOT", help="An earlier save, by its number.")
@click.option("--force", is_flag=True, help="Replace what is there; it goes to the trash (~/.catty/trash).")
@pass_cli
def download(cli: Cli, /, *, label: str, path: Path | None, form: str, snapshot: int | None, force: bool) -> None:
    """Fetch a session's files into a new directory PATH (./LABEL by default); of running and stopped sessions."""
    from catty.client.download import download as fetch
    from catty.client.trash import Trash

    session = cli.api.session(label)
    steps = Steps()

    def report(progress: Progress) -> None:
        steps.bar("fetching", progress.done_bytes, progress.all_bytes, detail=size(progress.done_bytes))

    done = fetch(
        cli.api,
        session["label"],
        path,
        form="tar.gz" if form == "tar.gz" else "dir",
        force=force,
        snapshot="latest" if snapshot is None else snapshot,
        trash=Trash(cli.home.root / "trash", session["label"]),
        report=report,
    )
    steps.clear()
    for line in done.notes:
        note(line)
    print(f"{printable(str(done.destination))}: {done.files} files, {size(done.size)}")
