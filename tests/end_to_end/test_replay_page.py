"""The page of `hdlm view` in a real browser: the player, the keyboard, two runs, hostile tokens, and accessibility.

Needs Chromium (`CHROMIUM` names another one than /usr/bin/chromium) and the dependency group `browser`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

import hdlm
from hdlm.generation import TraceDocument, record
from hdlm.generation.recording import change_columns
from hdlm.sampling import Change
from hdlm.view.page import ReplayPage, static_files
from tests.browsing import NEEDS_CHROMIUM, check_accessibility, chromium, wait_until

pytestmark = NEEDS_CHROMIUM


@pytest.fixture(scope="module")
def traces() -> dict[str, TraceDocument]:
    model = hdlm.load("kjv-epsilon-4m", device="cpu")
    settings = hdlm.Settings(eta=0.8, length=20, steps=4, temperature=0.8)
    return {
        name: record(model, "And it came", replace(settings, algorithm=name), num=2, seed=3)[1]
        for name in ("original", "acs")
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a page from a file, and asserts at the end that the browser logged nothing and requested nothing else."""
    messages: list[str] = []
    contexts: list[Any] = []

    def opened(page: ReplayPage | str, **options: Any) -> Any:
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(page if isinstance(page, str) else page.html(), encoding="utf-8")
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: messages.append(message.text))
        tab.on("pageerror", lambda error: messages.append(str(error)))
        tab.on("request", lambda request: request.url == path.as_uri() or messages.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert not messages


def value(tab: Any, name: str) -> Any:
    return tab.evaluate(f"hdlmReplay.page.{name}")


def words(tab: Any, run: int = 0) -> str:
    return " ".join(tab.locator(".text").nth(run).inner_text().replace("↵", "").split())


def test_slider_buttons_and_end_show_the_text(open_page: Any, traces: Any) -> None:
    tab = open_page(ReplayPage((traces["acs"],), "ACS"))
    assert tab.title() == tab.locator("h1").text_content() == "ACS"
    assert "░" in words(tab) or "·" in words(tab)
    tab.get_by_role("button", name="Last", exact=True).click()
    assert words(tab) == " ".join(traces["acs"].sequences[0].text.split())
    assert f"{traces['acs'].sequences[0].evaluations} evaluations" in tab.locator(".counter").text_content()
    assert tab.locator(".text .token.settled").count() + tab.locator(".text .token.given").count() == 20
    slider = tab.get_by_role("slider")
    slider.fill("1")
    assert value(tab, "position") == 1
    assert tab.locator(".text .token.written").count() >= 1
    assert "1 evaluation" in slider.get_attribute("aria-valuetext")
    back = tab.get_by_role("button", name="One step back")
    back.click()
    assert value(tab, "position") == 0
    assert back.get_attribute("aria-disabled") == "true"
    tab.get_by_label("Passage", exact=True).select_option("passage 2")
    tab.get_by_role("button", name="Last", exact=True).click()
    assert words(tab) == " ".join(traces["acs"].sequences[1].text.split())


@pytest.mark.slow
def test_every_position_shows_the_tokens_of_the_trace(open_page: Any, traces: Any) -> None:
    """Forwards, backwards and with jumps."""
    trace = traces["acs"]
    tab = open_page(ReplayPage((trace,)))
    states = [list(trace.sequences[0].start)]
    marks: list[dict[int, str]] = [{}]
    for _, changes in groupby(trace.of_sequence(0), key=lambda change: change.step):
        states.append(list(states[-1]))
        marks.append({})
        for change in changes:
            states[-1][change.position] = change.new
            marks[-1][change.position] = {"unmasked": "written", "corrected": "corrected"}[change.reason]
    count = len(states)
    for position in (*range(count), *reversed(range(count)), 3, count - 1, 0, count // 2):
        tab.evaluate(f"hdlmReplay.page.seek({position})")
        assert tab.evaluate("[...hdlmReplay.page.runs[0].tokens]") == states[position]
        shown = {
            int(span.get_attribute("data-position")): kind
            for kind in ("written", "corrected")
            for span in tab.locator(f".text .token.{kind}").all()
        }
        assert shown == marks[position]


def test_play_pause_speed_and_keys(open_page: Any, traces: Any) -> None:
    tab = open_page(ReplayPage((traces["acs"],)))
    play = tab.get_by_role("button", name="Play")
    play.focus()
    tab.keyboard.press("Space")
    wait_until(tab, "hdlmReplay.page.position > 1")
    tab.get_by_role("button", name="Pause").click()
    stopped = value(tab, "position")
    tab.wait_for_timeout(700)
    assert value(tab, "position") == stopped
    for key, expected in (
        ("End", value(tab, "length") - 1),
        ("Home", 0),
        ("ArrowRight", 1),
        ("ArrowLeft", 0),
    ):
        tab.keyboard.press(key)
        assert value(tab, "position") == expected, key
    for _ in range(5):
        tab.keyboard.press("+")
    assert value(tab, "speed") == 8
    assert tab.get_by_label("Speed").input_value() == "8"
    tab.keyboard.press("Space")
    wait_until(tab, "hdlmReplay.page.position === hdlmReplay.page.length - 1 && !hdlmReplay.page.timer")
    assert play.is_visible()


def test_hover_and_focus_show_probability_alternatives_and_history(open_page: Any, traces: Any) -> None:
    trace = traces["acs"]
    tab = open_page(ReplayPage((trace,)))
    change = next(c for c in trace.of_sequence(0) if c.reason == "corrected")
    history = [c for c in trace.of_sequence(0) if c.position == change.position]
    tab.evaluate("hdlmReplay.page.seek(hdlmReplay.page.length - 1)")
    tab.locator(f".text [data-position='{change.position}']").hover()
    details = tab.locator(".details")
    assert f"Position {change.position}" in details.locator("h3").text_content()
    assert details.locator(".history tbody tr").count() == len(history)
    assert details.locator(".alternatives tr").count() == 5
    assert f"{100 * history[-1].alternatives[0][1]:.1f} %" in details.locator(".alternatives").text_content()
    assert "entropy" in details.text_content()
    tab.locator(".text .token").nth(5).focus()
    tab.keyboard.press("ArrowRight")
    assert "Position 6" in details.locator("h3").text_content()
    assert tab.locator(".text .token[tabindex='0']").count() == 1
    tab.evaluate(
        "document.getElementById('hdlm-replay').addEventListener('hdlm-token', (e) => { window.seen = e.detail; })"
    )
    tab.keyboard.press("Enter")
    assert tab.evaluate("window.seen.position") == 6
    assert tab.evaluate("window.seen.token") == tab.evaluate("hdlmReplay.page.runs[0].tokens[6]")


def test_two_runs_are_aligned_by_evaluations(open_page: Any, traces: Any) -> None:
    tab = open_page(ReplayPage((traces["original"], traces["acs"]), "two"))
    assert tab.locator(".run").count() == 2
    for position in range(value(tab, "length") - 1):
        tab.evaluate(f"hdlmReplay.page.seek({position})")
        shown = tab.evaluate(
            "hdlmReplay.page.timeline[hdlmReplay.page.position].map((m, r) => {"
            " const all = hdlmReplay.page.runs[r].moments; return [all[m].evaluations, all[m + 1]]; })"
        )
        most = max(evaluations for evaluations, _ in shown)
        assert all(after["finished"] or after["evaluations"] > most for _, after in shown)
    tab.get_by_role("button", name="Last", exact=True).click()
    for run, name in enumerate(("original", "acs")):
        assert words(tab, run) == " ".join(traces[name].sequences[0].text.split())


HOSTILE = (
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken=1'>",
    "\u202e<b>&amp;\u2028",
)


def hostile(trace: TraceDocument) -> TraceDocument:
    """A trace whose texts try to become markup."""
    tokens = sorted(trace.pieces)
    pieces = {token: f" {HOSTILE[place % 3]}" for place, token in enumerate(tokens)}
    return replace(trace, title=HOSTILE[0], pieces=pieces)


def test_hostile_tokens_are_text(open_page: Any, traces: Any) -> None:
    trace = hostile(traces["acs"])
    tab = open_page(ReplayPage((trace, trace), HOSTILE[0]))
    tab.evaluate("hdlmReplay.page.seek(hdlmReplay.page.length - 1)")
    tab.locator(".text .token").nth(8).hover()
    assert tab.evaluate("window.broken") is None
    assert tab.locator("script").count() == 2
    assert tab.locator("#hdlm-replay img, #hdlm-replay b").count() == 0
    assert tab.locator("h1").text_content() == HOSTILE[0]
    assert HOSTILE[1] in tab.locator(".text").first.text_content()


def test_hostile_tokens_do_nothing_in_a_notebook(open_page: Any, traces: Any) -> None:
    frame = ReplayPage((hostile(traces["acs"]),), HOSTILE[0])._repr_html_()
    tab = open_page(f"<!doctype html><title>notebook</title>{frame}")
    inside = tab.frame_locator("iframe")
    inside.get_by_role("button", name="Last", exact=True).click()
    assert HOSTILE[1] in inside.locator(".text").text_content()
    assert tab.evaluate("window.broken") is None


@pytest.fixture
def served(browser: Any) -> Iterator[Any]:
    """A page of a server whose policy allows only files of the server."""
    policy = {"content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'"}
    page = (
        '<!doctype html><html lang="en"><title>live</title><link rel="stylesheet" href="replay.css">'
        '<div id="here"></div><script src="replay.js"></script>'
    )

    def answer(route: Any) -> None:
        name = route.request.url.rpartition("/")[2]
        kind = {"": "text/html", "replay.js": "text/javascript", "replay.css": "text/css"}[name]
        body = (static_files() / name).read_text(encoding="utf-8") if name else page
        route.fulfill(body=body, content_type=kind, headers=policy)

    context, messages = browser.new_context(), []
    tab = context.new_page()
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.route("http://hdlm.test/**", answer)
    tab.goto("http://hdlm.test/")
    yield tab
    context.close()
    assert not messages


def test_live_frames_give_the_replay_of_the_whole_trace(served: Any, traces: Any) -> None:
    """A served page with a strict policy loads script and style as files, and appends the steps of a run."""
    whole = json.loads(replace(traces["acs"], sequences=traces["acs"].sequences[:1]).to_json())
    changes = traces["acs"].of_sequence(0)
    empty = whole | {"changes": change_columns([]), "pieces": dict(whole["pieces"])}
    frames = []
    for step, group in groupby(changes, key=lambda change: change.step):
        rows = list(group)
        cost = {"evaluations": rows[-1].evaluations, "computed": rows[-1].computed}
        frames.append({"step": step, **cost, "changes": change_columns(rows)})
    tab = served
    mount = (
        "(trace) => { window.replay = hdlmReplay.mountReplay(document.getElementById('here'), trace, %s); }"
    )
    tab.evaluate(mount % "{live: true}", empty)
    for number, frame in enumerate(frames, 1):
        tab.evaluate("(frame) => replay.appendFrame(frame)", frame)
        assert tab.evaluate("replay.position") == number
    tab.evaluate("replay.finish()")
    assert words(tab) == " ".join(whole["sequences"][0]["text"].split())
    live = tab.evaluate("replay.runs[0].moments")
    tab.evaluate("replay.destroy()")
    assert tab.locator("#here > *").count() == 0
    tab.evaluate(mount % "{}", whole)
    assert tab.evaluate("replay.runs[0].moments")[:-1] == live[:-1]


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        pytest.param(width, scheme, marks=pytest.mark.slow)
        for width in (360, 1440)
        for scheme in ("dark", "light")
    ],
)
def test_axe_finds_no_violation(open_page: Any, traces: Any, width: int, scheme: str) -> None:
    remasked = _with_remasking(traces["acs"])
    for page in (ReplayPage((remasked,)), ReplayPage((traces["original"], traces["acs"]))):
        tab = open_page(page, viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        for position in (0, 8, value(tab, "length") - 1):
            tab.evaluate(f"hdlmReplay.page.seek({position})")
            tab.locator(".text .token").nth(9).hover()
            check_accessibility(tab)
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def _with_remasking(trace: TraceDocument) -> TraceDocument:
    """A trace in which one word is masked again and written again."""
    first = next(change for change in trace.of_sequence(0) if change.reason == "unmasked")
    cost = {"evaluations": first.evaluations, "computed": first.computed}
    here = {"sequence": 0, "position": first.position, **cost}
    mask, word = trace.mask_id, first.new
    again = [
        Change(step=first.step + 1, old=word, new=mask, reason="remasked", **here),
        Change(step=first.step + 2, old=mask, new=word, reason="unmasked", **here),
    ]
    others = [c for c in trace.changes if (c.sequence, c.position) != (0, first.position)]
    changes = sorted([*others, first, *again], key=lambda c: (c.step, c.sequence, c.position))
    return replace(trace, changes=tuple(changes))


def test_reduced_motion_is_respected(open_page: Any, traces: Any) -> None:
    page = ReplayPage((traces["acs"],), autoplay=True)
    moving = open_page(page, reduced_motion="no-preference")
    wait_until(moving, "hdlmReplay.page.position > 0")
    still = open_page(page, reduced_motion="reduce")
    still.wait_for_timeout(700)
    assert value(still, "position") == 0
    assert still.evaluate("getComputedStyle(document.querySelector('.token')).transitionDuration") == "0s"


def test_page_is_small(traces: Any) -> None:
    text = ReplayPage((traces["acs"],)).html()
    assert len(text.encode()) - len(traces["acs"].to_json().encode()) < 400_000
    for forbidden in ("http://", "https://", " style=", "onclick", "innerHTML ="):
        assert forbidden not in text.replace("http://json-schema.org", ""), forbidden
