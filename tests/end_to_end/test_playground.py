"""The page of `hdlm serve` in a real browser, with a real server: see `tests/browsing.py` for what it needs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hdlm.generation import TraceDocument
from hdlm.process import Absorbing
from hdlm.serve.models import ServedModel
from hdlm.serve.options import ServeOptions
from tests.browsing import NEEDS_CHROMIUM, check_accessibility, chromium, expect, wait_until
from tests.serving import HTTP, serving, small_checkpoint, small_model

pytestmark = NEEDS_CHROMIUM
PROMPT = "In the beginning"
LONG = "prompt=In the beginning&seed=3&hyperschedule=flat&steps=1000"
"""Settings whose generation takes many seconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving([small_model()]) as address:
        yield address


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the playground, and asserts at the end that the page had no fault and broke no policy."""
    messages: list[str] = []
    contexts: list[Any] = []

    def opened(link: str = "", server: str = address, **options: Any) -> Any:
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("request", lambda request: request.url.startswith(server) or messages.append(request.url))
        tab.goto(f"{server}/#{link}")
        return tab

    yield opened
    for context in contexts:
        context.close()
    # The browser itself reports answers with an error status, and connections that fail.
    assert not [text for text in messages if not text.startswith("Failed to load resource")]


def press(tab: Any, name: str) -> None:
    tab.get_by_role("button", name=name, exact=True).click()


def number(tab: Any, name: str, place: int = 0) -> Any:
    """A field for numbers, of the first or the second settings."""
    return tab.get_by_role("spinbutton", name=name, exact=True).nth(place)


def begin(tab: Any) -> None:
    """Wait until a generation is on the page."""
    expect(tab.locator(".counter").first).to_contain_text("evaluation", timeout=30_000)


def copied(tab: Any, name: str) -> str:
    """The text that a button copies."""
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    press(tab, f"Copy as {name}")
    expect(tab.locator("#status")).to_have_text(f"Copied as {name.lower()}.")
    return str(tab.evaluate("navigator.clipboard.readText()"))


def finish(tab: Any) -> str:
    """The status when the generation has ended."""
    expect(tab.locator("#status")).to_contain_text(re.compile("Seed|Nothing was written"), timeout=60_000)
    return str(tab.locator("#status").text_content())


def words(tab: Any, run: int = 0) -> str:
    return " ".join(tab.locator(".text").nth(run).inner_text().replace("↵", "").split())


def tokens(tab: Any, run: int = 0) -> list[str]:
    return list(
        tab.evaluate(f"[...document.querySelectorAll('.text')[{run}].children].map((s) => s.textContent)")
    )


def written(address: str, **body: Any) -> str:
    """The text of the server for a request without the page."""
    how = {"prompt": PROMPT, "seed": 3, "echo": True, "ignore_eos": True, "max_tokens": 12} | body
    answer = HTTP.post(f"{address}/v1/completions", json=how, timeout=60)
    return " ".join(answer.json()["choices"][0]["text"].split())


def test_typing_and_generating_shows_tokens_that_change(open_page: Any, address: str) -> None:
    tab = open_page()
    tab.get_by_label("Prompt").fill(PROMPT)
    for name, value in (
        ("New tokens", "12"),
        ("Seed", "3"),
        ("Eta", "0.5"),
        ("Temperature", "0.8"),
        ("Top-p", ""),
    ):
        number(tab, name).fill(value)
    tab.get_by_role("combobox", name="Algorithm").select_option("acs")
    tab.evaluate(
        "() => { window.seen = new Set(); const stage = document.getElementById('stage'); new MutationObserver(() =>"
        " seen.add(stage.querySelector('.text')?.textContent)).observe(stage, {subtree: true, childList: true,"
        " characterData: true}); }"
    )
    tab.get_by_label("Prompt").press("Control+Enter")
    assert re.search(r"Finished .* 12 tokens, \d+ evaluations, \d+ corrections?\. Seed 3\.", finish(tab))
    assert words(tab) == written(address, algorithm="acs", eta=0.5, temperature=0.8)
    assert tab.evaluate("seen.size") > 5
    assert tab.locator(".text .token.mask").count() == 0


@pytest.mark.slow
def test_replay_of_a_finished_generation_goes_back(open_page: Any) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3")
    press(tab, "Generate")
    finish(tab)
    end = words(tab)
    press(tab, "First")
    assert words(tab) != end
    press(tab, "Last")
    assert words(tab) == end


@pytest.mark.slow
def test_two_settings_share_a_seed(open_page: Any, address: str) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=12&seed=3&algorithm=original")
    tab.get_by_label("Compare two settings on one seed").check()
    second = tab.get_by_role("group", name="Second settings")
    second.get_by_label("Algorithm").select_option("acs")
    second.get_by_label("Eta").fill("0.9")
    press(tab, "Generate")
    assert "original: 12 tokens" in finish(tab)
    assert "acs, eta 0.9: 12 tokens" in finish(tab)
    assert words(tab, 0) == written(address, algorithm="original")
    assert words(tab, 1) == written(address, algorithm="acs", eta=0.9)
    assert tab.get_by_role("heading", name="acs, eta 0.9").is_visible()


@pytest.mark.slow
def test_gaps_are_filled(open_page: Any) -> None:
    tab = open_page("seed=3&max_tokens=9")
    tab.get_by_label("Prompt").fill("In the ")
    press(tab, "Insert a gap")
    tab.keyboard.type(" of the land")
    assert tab.get_by_label("Prompt").input_value() == "In the [MASK:3] of the land"
    assert number(tab, "New tokens").is_disabled()
    press(tab, "Generate")
    assert "3 tokens" in finish(tab)
    assert words(tab).startswith("In the")
    assert words(tab).endswith("of the land")


TEXT = "In the land was the word, and the people was with the beginning."


def corrected(address: str, **body: Any) -> dict[str, Any]:
    """The choice of the server for a correction without the page."""
    answer = HTTP.post(f"{address}/v1/correct", json=body, timeout=60)
    return dict(answer.raise_for_status().json()["choices"][0])


def test_pasted_text_is_corrected_and_shows_what_was_replaced(open_page: Any, address: str) -> None:
    tab = open_page("seed=3")
    tab.get_by_role("radio", name="Correct a text").check()
    tab.get_by_label("Text to correct").fill(TEXT)
    assert number(tab, "Eta").input_value() == "1"  # the page fills in settings that correct
    assert not number(tab, "New tokens").is_visible()
    assert "original" not in tab.get_by_role("combobox", name="Algorithm").text_content()
    number(tab, "Noise").fill("0.6")
    number(tab, "Steps of a token").fill("2")
    press(tab, "Correct")
    choice = corrected(address, text=TEXT, seed=3, noise=0.6, eta=1, temperature=0.3, steps=2)
    count = len(choice["corrections"])
    assert f"{count} token{'' if count == 1 else 's'} replaced" in finish(tab)
    assert words(tab) == " ".join(choice["text"].split())
    marked = tab.locator(".text .token.replaced")
    assert [int(mark.get_attribute("data-position")) for mark in marked.all()] == [
        change["position"] for change in choice["corrections"]
    ]
    old = [change["old"].strip() for change in choice["corrections"]]
    assert marked.evaluate_all("(all) => all.map((one) => one.dataset.old)") == old
    assert "instead of" in marked.first.get_attribute("aria-label")
    assert re.search(r"\d %", tab.locator(".replaced-words .share").first.text_content())
    press(tab, "First")
    assert words(tab) == TEXT
    assert tab.get_by_role("heading", name="No word is replaced").is_visible()
    other = open_page(copied(tab, "link").partition("#")[2])
    expect(other.get_by_label("Text to correct")).to_have_value(TEXT)
    assert number(other, "Noise").input_value() == "0.6"


@pytest.mark.slow
def test_written_text_is_corrected(open_page: Any, address: str) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3&temperature=0.4")
    press(tab, "Generate")
    finish(tab)
    press(tab, "Correct this text")
    expect(tab.get_by_role("radio", name="Correct a text")).to_be_checked()
    assert "replaced" in finish(tab)
    text, seed = tab.get_by_label("Text to correct").input_value(), int(number(tab, "Seed").input_value())
    assert text.startswith(PROMPT)
    choice = corrected(address, text=text, seed=seed, eta=1, temperature=0.4, steps=16)
    assert tab.locator(".text .token.replaced").count() == len(choice["corrections"]) > 0
    curl = copied(tab, "curl")
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(answer.stdout)["choices"][0]["text"] == choice["text"]
    tab.get_by_role("radio", name="Write", exact=True).check()
    assert number(tab, "Eta").input_value() == ""
    assert number(tab, "Temperature").input_value() == "0.4"


@pytest.mark.slow
def test_a_model_that_never_saw_a_wrong_word_refuses_to_correct(open_page: Any) -> None:
    masks = small_checkpoint(Absorbing(small_checkpoint().vocabulary.num_words))
    with serving([ServedModel("masks", masks)]) as address:
        tab = open_page(f"task=correct&seed=3&prompt={TEXT}", address)
        press(tab, "Correct")
        expect(tab.get_by_role("alert")).to_contain_text("Use a model whose noise replaces words")
        choice = tab.get_by_role("combobox", name="Algorithm")
        assert choice.get_attribute("aria-invalid") == "true"
        choice.select_option("remask")
        press(tab, "Correct")
        assert finish(tab).startswith("Finished")


def test_words_are_chosen_fixed_masked_and_written_again(open_page: Any) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=12&seed=3&temperature=2")
    press(tab, "Generate")
    finish(tab)
    before = tokens(tab)
    free = tab.evaluate(
        "[...document.querySelectorAll('.text .token')].findIndex((s) => !s.matches('.given'))"
    )
    place = tab.locator(".text .token")
    place.nth(free + 2).click()
    dialog = tab.get_by_role("dialog")
    assert dialog.get_by_role("heading").text_content().startswith(f"Position {free + 2}: ")
    choices = dialog.get_by_role("group", name="Likeliest words").get_by_role("button")
    assert choices.count() == 5
    assert re.fullmatch(r"“.+”\d+\.\d %", choices.nth(0).text_content())
    other = dialog.locator("#words button[aria-pressed=false]").first
    word = other.locator("span").first.text_content()
    other.click()
    assert not dialog.is_visible()
    assert tab.evaluate("document.activeElement.dataset.position") == str(free + 2)
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("Enter")
    dialog.get_by_role("button", name="Mask").click()
    place.nth(free + 5).click()
    dialog.get_by_role("button", name="Fix").click()
    rows = tab.locator("#edits li").all_text_contents()
    assert [re.sub(r".*(becomes|masked|fixed).*", r"\1", row) for row in rows] == [
        "becomes",
        "masked",
        "fixed",
    ]
    press(tab, "Fill in what is masked")
    assert "1 token" in finish(tab)
    after = tokens(tab)
    changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    assert set(changed) <= {free + 2, free + 3}
    assert after[free + 2].strip() == word.strip("“”")
    place.nth(free + 4).click()
    tab.get_by_role("dialog").get_by_role("button", name="Write again from here").click()
    assert f"{len(before) - free - 5} tokens" in finish(tab)  # from free + 4 on, without the fixed one
    again = tokens(tab)
    assert again[: free + 4] == after[: free + 4]
    assert again[free + 5] == after[free + 5]
    assert tab.evaluate("document.activeElement.id") == "result-title"


@pytest.mark.slow
def test_stopping_keeps_what_is_written_and_ends_the_work(open_page: Any, address: str) -> None:
    tab = open_page(LONG)
    press(tab, "Generate")
    begin(tab)
    wait_until(tab, "document.querySelector('.counter').textContent > 'step 3 '")
    press(tab, "Stop")
    assert finish(tab).startswith("Stopped")
    _wait_for_no_request(tab, address)
    masked = tab.locator(".text .token.mask, .text .token.noise")
    count = masked.count()
    assert count
    masked.nth(0).click()
    assert tab.get_by_role("dialog").get_by_role("button", name="Fix").count() == 0
    tab.keyboard.press("Escape")
    number(tab, "Steps of a token").fill("2")
    tab.locator(".text .token.mask").nth(0).press("Enter")
    press(tab, "Write again from here")
    assert finish(tab).startswith("Finished")


def _wait_for_no_request(tab: Any, address: str) -> None:
    for _ in range(200):
        if HTTP.get(f"{address}/ready").json()["requests_open"] == 0:
            return
        tab.wait_for_timeout(50)
    pytest.fail("the server still works on a request")


@pytest.mark.slow
def test_reload_in_the_middle_ends_the_work_and_keeps_the_settings(open_page: Any, address: str) -> None:
    tab = open_page(LONG)
    press(tab, "Generate")
    begin(tab)
    tab.reload()
    _wait_for_no_request(tab, address)
    expect(tab.get_by_label("Prompt")).to_have_value(PROMPT)
    assert number(tab, "Steps of a token").input_value() == "1000"
    number(tab, "Steps of a token").fill("3")
    press(tab, "Generate")
    assert finish(tab).startswith("Finished")


@pytest.mark.slow
def test_a_new_generation_ends_the_one_before(open_page: Any, address: str) -> None:
    tab = open_page(LONG)
    press(tab, "Generate")
    begin(tab)
    number(tab, "Steps of a token").fill("3")
    press(tab, "Generate")
    assert finish(tab).startswith("Finished")
    assert "step 3 of 3" in tab.locator(".counter").text_content()
    _wait_for_no_request(tab, address)


@pytest.mark.slow
def test_another_model_can_be_chosen(open_page: Any) -> None:
    with serving([small_model("one"), small_model("two")]) as address:
        tab = open_page("prompt=In the beginning&max_tokens=2&seed=3", address)
        tab.get_by_role("combobox", name="Model").select_option("two")
        press(tab, "Generate")
        finish(tab)
        assert tab.get_by_role("heading", name="two").is_visible()
        other = open_page(tab.url.partition("#")[2], address)
        expect(other.get_by_role("combobox", name="Model")).to_have_value("two")


@pytest.mark.slow
def test_two_tabs_generate_at_once(open_page: Any, address: str) -> None:
    tabs = [open_page(f"prompt=In the beginning&max_tokens=12&seed={seed}") for seed in (3, 4)]
    for tab in tabs:
        press(tab, "Generate")
    for seed, tab in zip((3, 4), tabs, strict=True):
        assert f"Seed {seed}." in finish(tab)
        assert words(tab) == written(address, seed=seed)


def test_refusals_are_shown_at_the_field(open_page: Any) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=8&steps=5000&seed=3")
    press(tab, "Generate")
    alert = tab.get_by_role("alert")
    expect(alert).to_contain_text("this server takes at most 1024")
    field = number(tab, "Steps of a token")
    assert field.get_attribute("aria-invalid") == "true"
    assert field.get_attribute("aria-errormessage") == alert.get_attribute("id")
    field.fill("2")
    press(tab, "Generate")
    finish(tab)
    assert alert.text_content() == ""
    assert field.get_attribute("aria-invalid") is None
    tab.get_by_label("Compare two settings on one seed").check()
    number(tab, "Eta", 1).fill("1")
    number(tab, "Steps of a token", 1).fill("5000")
    press(tab, "Generate")
    expect(alert).to_contain_text("Second settings: `steps` is 5000")
    assert finish(tab).startswith("Finished")
    assert tab.locator(".run").count() == 1


@pytest.mark.slow
def test_a_busy_server_and_one_that_is_away_are_told_apart(open_page: Any) -> None:
    with serving([small_model()], ServeOptions(queue=1)) as address:
        first, second = open_page(LONG, address), open_page(LONG, address)
        press(first, "Generate")
        begin(first)
        press(second, "Generate")
        expect(second.get_by_role("alert")).to_have_text(
            "The server has as many requests as it takes: try again later. It asks to wait 1 second."
        )
        press(first, "Stop")
        finish(first)
    press(second, "Generate")
    expect(second.get_by_role("alert")).to_contain_text("The server does not answer.")


@pytest.mark.slow
def test_failures_in_the_middle_are_reported(open_page: Any, address: str) -> None:
    with serving([small_model()], ServeOptions(request_timeout=1.0)) as slow:
        tab = open_page(LONG, slow)
        press(tab, "Generate")
        expect(tab.get_by_role("alert")).to_have_text("The request took longer than 1 seconds.")
        assert finish(tab).startswith("Broken off")

    def half(route: Any) -> None:
        real = HTTP.post(route.request.url, json=route.request.post_data_json, timeout=60).text
        route.fulfill(body=real[: len(real) // 2], content_type="text/event-stream")

    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3")
    tab.route("**/v1/completions", half)
    press(tab, "Generate")
    expect(tab.get_by_role("alert")).to_have_text("The connection broke before the text was finished.")
    assert finish(tab).startswith("Broken off")


def test_a_key_is_asked_for_and_kept_in_memory_only(open_page: Any) -> None:
    with serving([small_model()], ServeOptions(api_key="sesame")) as address:
        tab = open_page("prompt=In the beginning&max_tokens=4&seed=3", address)
        field = tab.get_by_label("API key of this server")
        expect(field).to_be_focused()
        assert not tab.get_by_role("button", name="Generate").is_visible()
        expect(tab.get_by_role("alert")).to_have_text("This server needs a key.")
        field.fill("wrong")
        field.press("Enter")
        expect(tab.get_by_role("alert")).to_have_text("The server does not accept this key.")
        field.fill("sesame")
        field.press("Enter")
        press(tab, "Generate")
        finish(tab)
        assert tab.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        shown = copied(tab, "curl")
        assert "sesame" not in shown + tab.url + tab.content()
        assert "$HDLM_API_KEY" in shown
        tab.reload()
        expect(field).to_be_focused()


@pytest.mark.slow
def test_link_restores_the_settings(open_page: Any) -> None:
    tab = open_page()
    press(tab, "With and without correction")
    tab.get_by_label("Prompt").fill("a & b = c # d\n“é” 50%")
    number(tab, "New tokens").fill("2")
    press(tab, "Generate")
    finish(tab)
    link = copied(tab, "link")
    other = open_page(link.partition("#")[2])
    assert other.url == link
    expect(other.get_by_label("Prompt")).to_have_value("a & b = c # d\n“é” 50%")
    values = "[...document.querySelectorAll('#form [name]')].map((f) => [f.name, f.value, f.checked])"
    assert other.evaluate(values) == tab.evaluate(values)
    assert other.get_by_role("group", name="Second settings").is_visible()


@pytest.mark.slow
def test_text_is_shown_where_it_cannot_be_copied(open_page: Any) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=2&seed=3")
    tab.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    press(tab, "Generate")
    finish(tab)
    press(tab, "Copy as link")
    expect(tab.locator("#copy textarea")).to_have_value(tab.url)
    press(tab, "Close")
    assert not tab.get_by_role("dialog").is_visible()


@pytest.mark.slow
def test_download_is_a_trace(open_page: Any, tmp_path: Path) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3")
    press(tab, "Generate")
    finish(tab)
    with tab.expect_download() as download:
        press(tab, "Download the trace")
    download.value.save_as(tmp_path / "trace.json")
    trace = TraceDocument.load(tmp_path / "trace.json")
    assert trace.seed == 3
    (sequence,) = trace.sequences
    assert " ".join(sequence.text.split()) == words(tab)
    assert sequence.evaluations == max(change.evaluations for change in trace.changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "link", ['prompt=In the land\'s "end"&max_tokens=8', "prompt=It's [MASK:2] the land"]
)
def test_copied_commands_give_the_text(open_page: Any, link: str) -> None:
    tab = open_page(f"{link}&seed=3&algorithm=acs&eta=0.4&temperature=0.8")
    press(tab, "Generate")
    finish(tab)
    curl = subprocess.run(
        ["bash", "-c", copied(tab, "curl")], capture_output=True, text=True, check=True, timeout=60
    )
    script = [sys.executable, "-c", copied(tab, "Python")]
    python = subprocess.run(
        script, capture_output=True, text=True, check=True, timeout=120, env=dict(os.environ)
    )
    for text in (json.loads(curl.stdout)["choices"][0]["text"], python.stdout):
        assert " ".join(text.split()) == words(tab)


HOSTILE = "<img src=x onerror='window.broken=1'></script><script>window.broken=1</script>"


def test_hostile_tokens_names_and_prompts_are_text(open_page: Any) -> None:
    with serving([small_model(HOSTILE)]) as address:
        tab = open_page(f"max_tokens=4&seed=3&prompt={HOSTILE}", address)

        def answer(route: Any) -> None:
            real = HTTP.post(route.request.url, json=route.request.post_data_json, timeout=60).text
            pieces = re.sub(r'("pieces": )\{[^}]*\}', lambda m: m[1] + _hostile(m[0]), real)
            route.fulfill(body=pieces, content_type="text/event-stream")

        tab.route("**/v1/completions", answer)
        tab.get_by_label("Prompt").fill(PROMPT)
        press(tab, "Generate")
        finish(tab)
        assert HOSTILE in tab.locator(".text").text_content()
        tab.locator(".text .token").last.click()
        assert HOSTILE in tab.get_by_role("dialog").text_content()
        tab.locator("#words button[aria-pressed=false]").first.click()
        assert HOSTILE in tab.locator("#edits").text_content()
        assert tab.evaluate("window.broken") is None
        assert tab.locator("img").count() == 0
        assert tab.locator("script").count() == 2


def _hostile(pieces: str) -> str:
    known = json.loads(pieces.partition(": ")[2])
    return json.dumps(dict.fromkeys(known, HOSTILE))


def test_page_has_no_inline_code_and_a_strict_policy(address: str) -> None:
    answer = HTTP.get(f"{address}/")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"<style|<script>| style=| on\w+=|https?://", answer.text)
    for name in ("play.js", "play.css", "replay/replay.js", "replay/replay.css"):
        text = HTTP.get(f"{address}/static/{name}").raise_for_status().text
        assert not re.search(r"https?://|innerHTML =|insertAdjacentHTML|document\.write|eval\(", text)
    for outside in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/replay/../../page.py"):
        assert HTTP.get(f"{address}{outside}").status_code == 404


@pytest.mark.slow
def test_reduced_motion_gives_few_pictures(open_page: Any, address: str) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=12&seed=3", reduced_motion="reduce")
    tab.evaluate(
        "() => { window.count = 0; const mount = hdlmReplay.mountReplay; hdlmReplay.mountReplay = (...given) => {"
        " const replay = mount(...given); new MutationObserver(() => { count += 1; }).observe("
        "replay.root.querySelector('.text'), {subtree: true, childList: true}); return replay; }; }"
    )
    press(tab, "Generate")
    seconds = float(re.search(r"after ([\d.]+) seconds", finish(tab))[1])
    assert tab.evaluate("count") <= seconds + 2
    assert words(tab) == written(address)


@pytest.mark.slow
def test_keyboard_alone_is_enough(open_page: Any) -> None:
    """Tab follows the order of the page, and nothing traps it."""
    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3")
    tab.get_by_label("Prompt").press("Control+Enter")
    finish(tab)
    seen = ["It corrects itself"]
    tab.get_by_role("button", name=seen[0]).focus()
    for _ in range(60):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.textContent || document.activeElement.name"))
        if seen[-1] == "Copy as link":
            break
    wanted = [
        "It corrects itself",
        "prompt",
        "Insert a gap",
        "Generate",
        "seed",
        "eta",
        "Stop",
        "Play",
        "Copy as link",
    ]
    assert [name for name in seen if name in wanted] == wanted
    tab.locator(".text .token").last.focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.getElementById('token').contains(document.activeElement)")
    tab.keyboard.press("Escape")
    assert tab.evaluate("document.activeElement.className").startswith("token")


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "dark"),
        *(
            pytest.param(width, scheme, marks=pytest.mark.slow)
            for width, scheme in (
                (360, "light"),
                (800, "dark"),
                (800, "light"),
                (1440, "dark"),
                (1440, "light"),
            )
        ),
    ],
)
def test_axe_finds_no_violation(open_page: Any, width: int, scheme: str) -> None:
    link = "prompt=In the beginning&max_tokens=8&seed=3&compare=1&b.eta=0.9"
    tab = open_page(link, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    tab.get_by_role("button", name="Generate").wait_for()
    check_accessibility(tab)
    press(tab, "Generate")
    finish(tab)
    tab.locator(".text .token:not(.given)").nth(3).click()
    check_accessibility(tab)
    tab.locator("#words button").nth(1).click()
    tab.locator(".text .token:not(.given)").nth(5).click()
    tab.get_by_role("dialog").get_by_role("button", name="Mask").click()
    number(tab, "Steps of a token").fill("5000")
    press(tab, "Generate")
    expect(tab.get_by_role("alert")).to_contain_text("`steps` is 5000")
    check_accessibility(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_narrow_page_scrolls_to_the_text(open_page: Any) -> None:
    tab = open_page("prompt=In the beginning&max_tokens=8&seed=3", viewport={"width": 360, "height": 700})
    press(tab, "Generate")
    finish(tab)
    expect(tab.locator("#result-title")).to_be_in_viewport()
    expect(tab.locator(".text .token:not(.given)").first).to_be_in_viewport()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_no_violation_in_a_correction(open_page: Any, scheme: str) -> None:
    link = f"task=correct&prompt={TEXT}&seed=3&eta=1&steps=2"
    tab = open_page(link, viewport={"width": 360, "height": 900}, color_scheme=scheme, bypass_csp=True)
    press(tab, "Correct")
    finish(tab)
    check_accessibility(tab)
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
def test_axe_finds_no_violation_in_the_form_for_the_key(open_page: Any) -> None:
    with serving([small_model()], ServeOptions(api_key="sesame")) as address:
        tab = open_page("", address, bypass_csp=True)
        expect(tab.get_by_label("API key of this server")).to_be_focused()
        check_accessibility(tab)
