"""How code is asked for; half of the test lines use phrasings that no training line has (`NEW`)."""

SEEN: dict[str, tuple[str, ...]] = {
    "complete": (
        "Complete this Python function:\n\n{head}",
        "Complete the following function.\n\n```python\n{head}\n```",
        "Write the body of this function:\n\n{head}",
        "{head}",
        "```python\n{head}\n```\n\nContinue the code.",
        "Here is the beginning of a Python function. Write the rest.\n\n{head}",
        "Fill in the implementation:\n\n{head}",
        "Finish this method.\n\n{head}",
        "# Python 3\n{head}",
        "What would the body of this function look like?\n\n{head}",
        "Implement it:\n\n```python\n{head}\n```",
        "Please implement the following Python code.\n\n{head}",
    ),
    "write": (
        "Write a Python function `{name}` that does this: {what}",
        "{what} Write this as a Python function called {name}.",
        "I need a Python function named {name}. {what}",
        "Can you code {name} in Python? {what}",
        "Python: def {name}, {what}",
        "How would you implement `{name}` in Python? {what}",
        "Give me Python code for {name}: {what}",
        "Implement {name}() for me. {what}",
        "Write code: {what} (function {name})",
        "Python function wanted. {what} Name it {name}.",
        "Show me a Python implementation of {name}. {what}",
    ),
    "explain": (
        "What does this function do?\n\n{code}",
        "Explain this Python code in one sentence.\n\n```python\n{code}\n```",
        "Write a docstring for this function:\n\n{code}",
        "{code}\n\nWhat is this code for?",
        "Summarise the function.\n\n{code}",
        "I found this in a module; what is its purpose?\n\n```python\n{code}\n```",
        "Describe the following method briefly:\n\n{code}",
    ),
}

NEW: dict[str, tuple[str, ...]] = {
    "complete": (
        "The following Python function has no body yet. Please add it.\n\n{head}",
        "How should this function continue?\n\n```python\n{head}\n```",
        "Turn this signature into working code:\n\n{head}",
        "My editor stopped here, what comes next?\n\n{head}",
    ),
}
