"""What a page's Content Security Policy has to stop: attacks of somebody who got into its script."""

from typing import Final

from playwright.async_api import Page

ATTACKS: Final = (
    "const script = document.createElement('script'); script.text = 'window.ran = 1'; document.head.append(script)",
    "document.body.innerHTML = '<img src=x onerror=\"window.ran = 1\">'",
    "document.body.setAttribute('style', 'color: red')",
    "document.body.append(Object.assign(document.createElement('img'), { src: 'https://other.example/x' }))",
    "fetch('https://other.example/').catch(() => {})",
    "document.body.append(Object.assign(document.createElement('iframe'), { src: '/' }))",
)


async def attempt(page: Page, attack: str) -> None:
    """Run an attack in the page, and wait for the browser's complaint."""
    async with page.expect_event("console"):
        await page.evaluate(f"() => {{ try {{ {attack} }} catch {{}} }}")
