"""Seeded lines of mixed text for comparing tokenizers: prose, code, digits, CJK, emoji, runs of white space."""

import random
from collections.abc import Callable

_PROSE = (
    "the of and patient router gradient It's don't WE'LL they're I'd naïve café Zürich straße fiancée Ελλάδα μέτρο "
    "привет мир שלום مرحبا नमस्ते ภาษาไทย việt résumé co-operate e.g. U.S.A. O'Brien 's 'S x² H₂O ½ Ⅷ ﬁnal ǅ İstanbul"
)
_WORDS = _PROSE.split()
_NAMES = ("x", "i", "n_heads", "camelCase", "__init__", "HTTPServer2", "value1", "kv_cache", "MAX_LEN", "λ", "données")
_CODE = (
    "def {a}({b}, *args, **kwargs) -> list[int]:",
    "    return {a}[{n}:{b}] @ {b}.T  # {w}",
    "\tif ({a} != {b} && {a} >= 0x{n}F) {{ {a}++; }}",
    "        self.{a} = {{\"{b}\": {n}.5e-{n}, '{w}': None}}",
    "for(int {a}=0;{a}<{n};++{a}){b}[{a}]*={n}u;",
    '<div class="{a}">{w}&nbsp;</div><!-- {b} -->',
    "SELECT {a}, COUNT(*) FROM {b} WHERE {a} LIKE '%{w}%';\r\n",
    "  - {a}: &{b} ~/.config/{w}/{n}.yaml\t\t|",
    "$\\frac{{{a}_{{{n}}}}}{{\\sqrt{{{b}}}}}$ \\begin{{{w}}}",
)
_CJK = (
    "今日は良い天気ですね。我们的模型很小，但是好用！한국어 문장입니다。カタカナ・ﾊﾝｶｸ「引用」東京都、漢字々仮名ㄅㄆㄇ"
)
_EMOJI = ("🙂", "👩‍🚀", "👍🏽", "🇨🇭", "❤️", "🧑‍🤝‍🧑", "☕", "™", "→", "∑", "𝔘", "𐍈", "⌨️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿")
_SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\r\n",
    " \n",
    "\n ",
    "\u00a0",
    "\u3000",
    "\u2009",
    "\u200b",
    " " * 17,
)
_MARKS = ("...", "—", "“", "”", "!?", "¿", "«", "»", "--", "##", "```", "$$", "''", "\\", "://", "@", "½", "\u0301")


def mixed_lines(n: int = 2_000, seed: int = 0) -> list[str]:
    """n non-empty strings, the same for the same seed; some hold line breaks and white space at both ends."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[random.Random], str], ...] = (_prose, _code, _digits, _cjk, _emoji, _spaces, _any_unicode)
    lines = []
    for i in range(n):
        parts = [kinds[i % len(kinds)](rng)]
        while rng.random() < 0.4:
            parts.append(rng.choice(kinds)(rng))
        lines.append(rng.choice(_SPACES).join(parts) or "x")
    return lines


def _prose(rng: random.Random) -> str:
    words = [rng.choice(_WORDS) for _ in range(rng.randint(1, 14))]
    marked = [word + rng.choice(("", "", "", ",", ".", *_MARKS)) for word in words]
    return " ".join(marked).capitalize() if rng.random() < 0.3 else " ".join(marked)


def _code(rng: random.Random) -> str:
    return rng.choice(_CODE).format(a=rng.choice(_NAMES), b=rng.choice(_NAMES), n=_digits(rng), w=rng.choice(_WORDS))


def _digits(rng: random.Random) -> str:
    number = str(rng.randrange(10 ** rng.randint(1, 15)))
    forms = (
        number,
        f"{int(number):,}",
        f"-{number}.{number}",
        f"{number}%",
        f"{number}³",
        f"x{number}y",
        f"٣{number}४",
    )
    return rng.choice(forms)


def _cjk(rng: random.Random) -> str:
    start = rng.randrange(len(_CJK))
    return _CJK[start : start + rng.randint(1, 20)]


def _emoji(rng: random.Random) -> str:
    return rng.choice(("", " ")).join(rng.choice(_EMOJI) for _ in range(rng.randint(1, 6)))


def _spaces(rng: random.Random) -> str:
    return "".join(rng.choice((*_SPACES, *_SPACES, *_WORDS[:6], "1", ".")) for _ in range(rng.randint(1, 12)))


def _any_unicode(rng: random.Random) -> str:
    """Letters from all over the assigned planes, where classes of characters differ most between libraries."""
    blocks = (
        (0x20, 0x7F),
        (0xA0, 0x250),
        (0x370, 0x52F),
        (0x5D0, 0x5EA),
        (0x620, 0x6D3),
        (0x905, 0x939),
        (0xE01, 0xE2E),
    )
    blocks += (
        (0x1E00, 0x1EFF),
        (0x2010, 0x2027),
        (0x2190, 0x21FF),
        (0x2460, 0x24FF),
        (0x3041, 0x30FF),
        (0xAC00, 0xD7A3),
    )
    picks = [rng.choice(blocks) for _ in range(rng.randint(1, 20))]
    return "".join(chr(rng.randrange(low, high)) for low, high in picks)
