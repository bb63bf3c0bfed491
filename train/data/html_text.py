"""The readable text of an HTML page of a manual."""

import re
from html.parser import HTMLParser

_HIDDEN = ("script", "style", "head", "nav", "svg", "button", "form")
_HIDDEN_CLASSES = (
    "nosearch",
    "navheader",
    "navfooter",
    "toc",
    "sidebar",
    "menu-bar",
    "nav-wrapper",
    "nav-wide-wrapper",
)
_BLOCKS = ("p", "div", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "br", "hr", "blockquote", "main", "section",
           "h1", "h2", "h3", "h4", "h5", "h6", "pre")  # fmt: skip
_APART = ("p", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "table", "blockquote")
_VOID = ("br", "hr", "img", "input", "meta", "link")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden: list[str] = []  # open tags from the outermost hidden one on, only of that one's name
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._hidden:
            self._hidden += [tag] if tag == self._hidden[0] else []
            return
        classes = (dict(attrs).get("class") or "").split()
        if tag not in _VOID and (tag in _HIDDEN or any(name in _HIDDEN_CLASSES for name in classes)):
            self._hidden.append(tag)
            return
        self._break(tag)
        self._pre += tag == "pre"
        if tag == "li":
            self.pieces.append("- ")
        if tag in ("td", "th"):
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            if tag == self._hidden[0]:
                self._hidden.pop()
            return
        if tag == "pre":
            self._pre = max(self._pre - 1, 0)
        self._break(tag)

    def _break(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.pieces.append("\n\n" if tag in _APART else "\n")

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if not self._pre:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if self.pieces and self.pieces[-1].endswith("\n") else data
        self.pieces.append(data)


def html_text(page: str) -> str:
    """Paragraphs, headings and code of a page, blank lines between; navigation, scripts and forms left out."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    text = re.sub(r"\n-\n+", "\n- ", re.sub(r"[ \t]+\n", "\n", "".join(reader.pieces)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()
