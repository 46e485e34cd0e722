"""The screen of `replay --step` at a real terminal: keys to what they mean, and a line for answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import ConditionalContainer, HSplit, Layout, VSplit, Window
from prompt_toolkit.layout.controls import BufferControl, FormattedTextControl

if TYPE_CHECKING:
    from tools.step import Screen

PRESSED = {
    "right": "next",
    "n": "next",
    "space": "next",
    "left": "back",
    "p": "back",
    "home": "home",
    "end": "end",
    "]": "onward",
    "[": "backward",
    "s": "show",
    "m": "mark",
    "d": "diff",
    "?": "help",
}
FOOT = "→ next  ← back  g go to  f follow  ] [ where it changes  s show  m mark  d diff  ? keys  q quit"


class _Question:
    """The line at the foot while it asks something."""

    def __init__(self) -> None:
        self.label = ""
        self.answer: Callable[[str], None] | None = None
        self.buffer = Buffer(multiline=False)

    def is_open(self) -> bool:
        return self.answer is not None


def application(screen: Screen) -> Application[None]:
    """The running screen; its input and output are those of the session."""
    question = _Question()
    asking = Condition(question.is_open)
    line = BufferControl(question.buffer)
    foot = VSplit(
        [Window(FormattedTextControl(lambda: question.label), dont_extend_width=True, height=1), Window(line)]
    )
    body = FormattedTextControl(lambda: _plain(screen.body()), focusable=True)
    layout = Layout(
        HSplit(
            [
                Window(FormattedTextControl(lambda: [("reverse", screen.head())]), height=1),
                Window(body, wrap_lines=True),
                Window(FormattedTextControl(lambda: [("bold", screen.note)]), height=1),
                ConditionalContainer(foot, asking),
                ConditionalContainer(Window(FormattedTextControl(FOOT), height=1), ~asking),
            ]
        ),
        focused_element=body,
    )
    keys = KeyBindings()

    def ask(label: str, answer: Callable[[str], None]) -> None:
        question.label, question.answer = label, answer
        question.buffer.reset()
        layout.focus(line)

    def close() -> None:
        question.answer = None
        layout.focus(body)

    for key, meaning in PRESSED.items():
        keys.add(key, filter=~asking)(lambda event, meaning=meaning: screen.press(meaning))
    keys.add("g", filter=~asking)(lambda event: ask("go to: ", screen.go))
    keys.add("f", filter=~asking)(lambda event: ask("follow (ID [FIELD]): ", screen.follow))

    @keys.add("enter", filter=asking)
    def _(event: KeyPressEvent) -> None:
        answer = question.answer
        close()
        if answer is not None:
            answer(question.buffer.text)

    @keys.add("escape", filter=asking, eager=True)
    def _(event: KeyPressEvent) -> None:
        close()

    @keys.add("q", filter=~asking)
    @keys.add("c-c")
    @keys.add("c-d")
    def _(event: KeyPressEvent) -> None:
        event.app.exit()

    return Application(layout=layout, key_bindings=keys, full_screen=True)


def _plain(text: str) -> StyleAndTextTuples:
    return [("", text)]
