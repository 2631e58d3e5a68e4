"""Real browsers: two tabs of headless Chromium chat with each other through the log."""

from __future__ import annotations

import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from harness import until

pytestmark = pytest.mark.short

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    # both tabs must run, though only one is in front
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
]

# what the page promises to this test (cli: the chat page)
NICKNAME, JOIN = "#nickname", "#join"
TEXT, MESSAGES = "#text", "#messages"


@pytest.fixture
def browser(folder, need):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    need(chromium and driver, "chromium and chromedriver not found (`make setup` installs them)")
    options = Options()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    yield browser
    browser.quit()


def enter(browser, url: str, nickname: str) -> str:
    """Opens the page in a tab of its own; gives back the tab."""
    browser.switch_to.new_window("tab")
    browser.get(url)
    field = until(lambda: browser.find_elements(By.CSS_SELECTOR, NICKNAME), "the field for the nickname")[0]
    field.send_keys(nickname)
    browser.find_element(By.CSS_SELECTOR, JOIN).click()
    until(lambda: browser.find_element(By.CSS_SELECTOR, TEXT).is_enabled(), "the field for messages", 10)
    return browser.current_window_handle


def say(browser, tab: str, text: str) -> None:
    browser.switch_to.window(tab)
    browser.find_element(By.CSS_SELECTOR, TEXT).send_keys(text, Keys.ENTER)


def shown(browser, tab: str) -> str:
    browser.switch_to.window(tab)
    return browser.find_element(By.CSS_SELECTOR, MESSAGES).text


def test_two_tabs_see_each_others_messages(dev, browser):
    url = dev.broker.http() + "/demo/chat"
    ada = enter(browser, url, "ada")
    bob = enter(browser, url, "bob")
    say(browser, ada, "hello bob")
    until(lambda: "hello bob" in shown(browser, bob), "bob to see ada's message", 10)
    assert "ada" in shown(browser, bob)
    say(browser, bob, "hello <b>ada</b>")
    until(lambda: "hello <b>ada</b>" in shown(browser, ada), "ada to see bob's message, as text and not as markup", 10)
    for tab in (ada, bob):
        assert shown(browser, tab).count("hello bob") == 1, shown(browser, tab)
    # as the README says
    dev.cli("publish", "chat", "hello, everybody")
    until(lambda: "hello, everybody" in shown(browser, ada).splitlines(), "ada to see what the command line published, whole", 10)
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    assert not errors, errors
    log = dev.tail("--api", "chat")
    opened = [record for record in log if record.kind == "connection_opened"]
    assert len(opened) == 2
    browser.switch_to.window(bob)
    browser.close()
    until(lambda: len(dev.connections("--api", "chat")) == 1, "bob to be gone")
