"""The prompts of `mbjax demo`: one for each pack, one for two of them, and one that is none's."""

DEMO_PROMPTS = (
    "In which ICD-10 chapter is whooping cough?",
    "Tom has 12 marbles, buys 15 more and loses 4. How many has he now?",
    "Complete this Python function:\n\ndef is_even(n):",
    "What kind of licence is the GNU General Public License?",
    'Define "patience" in the manner of the Devil\'s Dictionary.',
    "hello, who are you?",
    "Name the ICD-10 chapter of gout, then tell me how much 17 + 25 is.",
    "How do I keep an orchid alive in winter?",
)
DEMO_TOKENS = 48
