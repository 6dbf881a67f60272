"""Pictures of the report of a project that has run, for README.md: `make bench ARGS=screenshots` in that project."""

import os
import shutil
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SHOTS = ((1400, 900), (400, 800))
COLOURS = 128


@click.command()
@click.option("--report", type=Path, default=Path("data/report/report.html"), show_default=True)
@click.option("--out", type=Path, default=Path("docs/report"), show_default=True, help="Folder of the pictures.")
def main(report: Path, out: Path) -> None:
    """Light and dark, wide and narrow: the curves at the top, and a group that is open."""
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        for width, height in SHOTS:
            for scheme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                page.goto(report.absolute().as_uri())
                shoot(page, "#curves", out / f"curves-{width}-{scheme}.png")
                page.locator("#rollouts th button", has_text="spread").click()
                page.locator("#rollouts tbody tr:not(.bare)").first.click()
                shoot(page, "#rollouts", out / f"rollouts-{width}-{scheme}.png")
        browser.close()
    click.echo(f"{out}: {sum(path.stat().st_size for path in out.glob('*.png')) / 1e3:.0f} kB")


def shoot(page: Page, place: str, path: Path) -> None:
    """The screen with a section at its top, in few colours: such pictures are small."""
    page.locator(place).evaluate("each => each.scrollIntoView()")
    page.wait_for_timeout(1500)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    main()
