"""The prompts of `mbjax demo`: one of each kind of work that a small base can do."""

DEMO_PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that returns the larger of two numbers.",
)
DEMO_TOKENS = 64
