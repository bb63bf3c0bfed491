"""Builds background prompts that share their form, but not their subject, with what packs are asked.

    python train/data/background_forms.py --data DIR --out mbjax/data/background

Writes forms.jsonl: classifying and coding tasks of other trades, titles for everyday texts, snippets of other
programming languages, and long passages put together from the short ones that lie in the same directory; and
asked.jsonl: a few training prompts of every domain in DIR (DIR/NAME/train.jsonl), never of a test. A pack's key is
fitted against the background: without the former, length and the form of a task alone would pass for a subject;
without the latter a pack would never have seen that others are asked such things (a pack's fit sets aside what looks
like its own). Lines hold `prompt` and `kind`. The same seed gives the same bytes.
"""

import argparse
import json
import random
from pathlib import Path

SEED = 7
ASKED, LONGEST_ASKED = 120, 900  # prompts of each domain, and their characters
DOMAINS = ("chat", "code", "creative", "legal", "medical", "reasoning")
CODING = {  # how a trade asks for a class, and what it classifies
    "customs": (
        ["HS tariff chapter for {}?", "Under which customs heading do {} fall?", "Tariff classification: {}"],
        ["leather gloves", "woollen socks", "umbrellas", "bicycle tyres", "wooden spoons", "steel pipes", "toy cars"],
    ),
    "library": (
        ["Dewey class for a book about {}?", "On which shelf does a book on {} stand?", "Library category: {}"],
        ["beekeeping", "chess openings", "map reading", "glass blowing", "knitting", "bridges", "whales"],
    ),
    "workshop": (
        ["Fault report: {}. Assembly group:", "Which part of the machine does '{}' concern?", "Workshop code for {}?"],
        ["worn conveyor belt", "cracked display", "leaking valve", "loose handle", "flat battery", "jammed paper tray"],
    ),
    "trade": (
        ["Which industry code does {} get?", "Name the branch of trade: {}", "Sector for {} please"],
        [
            "a laundry",
            "a ferry company",
            "a quarry",
            "an advertising agency",
            "a printing house",
            "a shipyard",
            "a sawmill",
        ],
    ),
    "nature": (
        ["Which family of plants or animals do {} belong to?", "Order or class: {}", "Classify in one word: {}"],
        ["ferns", "otters", "crabs", "barn owls", "mosses", "tree frogs", "lichens", "sea urchins"],
    ),
    "shop": (
        ["Which department sells {}?", "Product category for {}:", "Put {} into a category of our web shop."],
        ["extension leads", "birthday candles", "desk lamps", "dog leads", "tea towels", "picture frames", "skis"],
    ),
    "media": (
        ["Which genre is '{}'?", "Film, game or book: {}?", "Give the section of the newspaper for: {}"],
        ["The Silent Harbour", "The Last Witness", "How to Paint Clouds", "Rivals meet in the final", "Seven Doors"],
    ),
    "jobs": (
        ["Occupational group of {}?", "What field does {} work in?", "Job code: {}"],
        ["a stage designer", "a crane driver", "a museum guard", "a tailor", "a land surveyor", "a florist"],
    ),
}
TITLES = ["Give this text a title:\n{}", "Which heading fits? {}", "Name the title: {}", "Excerpt:\n{}\nWhat kind of text is this?",
          "What sort of document is this from?\n\n{}", "One label for the following, please. {}", "Explain in one sentence.\n\n{}"]  # fmt: skip
LONG = ["{}", "Summarise:\n{}", "Read this and tell me who it is written for.\n\n{}", "Classify this text: {}", "Continue: {}",
        "{}\n\nWhat is the tone of this?", "Excerpt: {}", "\"{}\"\n\nTranslate the last sentence into French."]  # fmt: skip
SNIPPETS = [
    "function {a}({b}) {{\n  return {b}.{c}();\n}}",
    "Explain this JavaScript.\n\nconst {a} = ({b}) => {b}.map(x => x.{c});",
    "What does this SQL do?\n\nSELECT {a}, {b} FROM {c} WHERE {b} > 10 ORDER BY {a};",
    "struct {a} {{\n    int {b};\n    char *{c};\n}};",
    "curl -X POST https://example.org/{a} -d '{b}={c}'",
    '{{"{a}": 1, "{b}": ["{c}"]}}',
    '<div class="{a}"><span id="{b}">{c}</span></div>',
    "Complete this Java method:\n\npublic int {a}(int {b}) {{",
    'for f in *.{a}; do mv "$f" {b}/{c}; done',
    "2024-03-01 12:00:01 ERROR {a}: {b} not found in {c}",
    "Convert this to TypeScript: var {a} = new {b}('{c}');",
    "Makefile:\n{a}: {b}\n\tgcc -o {a} {b} -l{c}",
]
NAMES = (
    "total",
    "user",
    "cart",
    "price",
    "index",
    "render",
    "parse",
    "token",
    "queue",
    "report",
    "image",
    "session",
    "order",
    "label",
)
KINDS_OF_PASSAGES = ("passages", "letters and diary", "documentation and forms", "plain sentence", "段落")


def forms(directory: Path, rng: random.Random) -> list[dict[str, str]]:
    """All lines: coding and snippets in full, titles and long passages from the directory's own texts."""
    lines = [
        {"prompt": form.format(thing), "kind": f"classes of {trade}"}
        for trade, (ask, things) in CODING.items()
        for thing in things
        for form in ask
    ]
    for snippet in SNIPPETS:
        for _ in range(6):
            a, b, c = rng.sample(NAMES, 3)
            lines.append({"prompt": snippet.format(a=a, b=b, c=c), "kind": "code in other languages"})
    passages = _passages(directory)
    for form in TITLES:
        lines += [{"prompt": form.format(text), "kind": "titles"} for text in rng.sample(passages, 12)]
    for form in LONG:
        for n in (2, 3, 4, 6, 8):
            for _ in range(5):
                text = " ".join(rng.sample(passages, n))
                lines.append({"prompt": form.format(text), "kind": "long passages"})
    return lines


def asked(data: Path, rng: random.Random) -> list[dict[str, str]]:
    """A few prompts of each domain's training file, none long."""
    lines = []
    for path in (data / name / "train.jsonl" for name in DOMAINS):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        prompts = sorted({r["prompt"] for r in records if len(r.get("prompt", "")) in range(1, LONGEST_ASKED)})
        kind = f"asked of {path.parent.name}"
        lines += [{"prompt": prompt, "kind": kind} for prompt in rng.sample(prompts, ASKED)]
    return lines


def _passages(directory: Path) -> list[str]:
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        if path.name not in ("forms.jsonl", "asked.jsonl"):
            records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
            found += [r["prompt"] for r in records if any(kind in r["kind"] for kind in KINDS_OF_PASSAGES)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mbjax/data/background"))
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    files = {"forms": forms(options.out, random.Random(SEED)), "asked": asked(options.data, random.Random(SEED))}
    for name, lines in files.items():
        path = options.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines)} prompts")


if __name__ == "__main__":
    main()
