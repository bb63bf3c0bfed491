"""How the legal questions are asked; half of the test lines use phrasings that no training line has (`NEW`)."""

# Further ways to ask for a category, in training only: beside `SEEN`, whose number the draws of the split depend on.
FURTHER: tuple[str, ...] = (
    "Permissive, copyleft, free with restrictions or commercial? Decide for this passage:\n\n{text}",
    "{text}\n\nSort this into a licence category.",
    "Here is part of a licence:\n\n{text}\n\nCategory?",
    "I need to know which kind of licence contains these words.\n\n{text}",
    "Assign the passage below to a licence category.\n\n{text}",
    "Before we ship: what kind of licence is quoted here?\n\n{text}",
    'The README quotes "{text}". What licence category is that?',
    "{text}\n\nIs that copyleft, permissive, commercial, or free with restrictions?",
    "What does a compliance officer file this licence under?\n\n{text}",
    "Determine the licence type from these terms alone.\n\n{text}",
    "{text}\n\nTell me the type of this licence.",
    "Terms of use:\n{text}\n\nWhich category of licence fits?",
)

SEEN: dict[str, tuple[str, ...]] = {
    "category": (
        "{text}\n\nWhat kind of licence is this: Permissive, Copyleft, Free with restrictions or Commercial?",
        "Licence category of the following text?\n\n{text}",
        "Classify this licence text.\n\n{text}",
        "Is this licence permissive, copyleft, free with restrictions, or commercial?\n\n{text}",
        "Read this excerpt of a software licence and name its category.\n\n{text}",
        "{text}\n\nLicence category:",
        "To which class of licences does this belong?\n\n{text}",
        'A file in our repository says:\n\n"{text}"\n\nWhat type of licence is it?',
        "What sort of licence has these terms?\n\n{text}",
        "Our legal department wants the licence type of this text:\n\n{text}",
        "Excerpt:\n{text}\n\nName the kind of licence.",
        "Open source compliance: categorise the following.\n\n{text}",
    ),
    "name": (
        "Which licence is this text from?\n\n{text}",
        "Name the licence:\n\n{text}",
        "{text}\n\nWhat is this licence called?",
        "I found this header in a source file. Which licence is it?\n\n{text}",
        "Identify the licence of this excerpt.\n\n{text}",
    ),
    "named": (
        "What kind of licence is the {name}?",
        "Is the {name} permissive or copyleft?",
        "{name}: licence category?",
        "Under which class of licences does the {name} fall?",
        "We want to use a library under the {name}. What type of licence is that?",
        "Licence type of {name}?",
        "Can you classify the {name}?",
        "How would a lawyer categorise the {name}?",
    ),
    "article": (
        "What is the title of this article of the Constitution of India?\n\n{text}",
        "{text}\n\nTitle of this constitutional article:",
        "Which subject does this provision of the Indian Constitution deal with?\n\n{text}",
        "Give the heading of the following article of the Indian Constitution.\n\n{text}",
        "Constitution of India:\n{text}\n\nWhat is this article called?",
        "Name the title: {text}",
        "The Constitution says: {text}\n\nUnder what heading?",
        "Read this constitutional provision and give its title.\n\n{text}",
    ),
    "section": (
        "What is this section of a contract called?\n\n{text}",
        "{text}\n\nTitle of this section:",
        "Give the heading of the following clause.\n\n{text}",
        "Which subject does this clause deal with?\n\n{text}",
        "Name the title: {text}",
        "Read this clause of a licence agreement and give its title.\n\n{text}",
    ),
    "number": (
        "What does article {number} of the Constitution of India deal with?",
        "Title of Article {number} of the Indian Constitution?",
        "Article {number}, Constitution of India: what is it about?",
        "Which subject is covered by Article {number} of India's constitution?",
        "In the Constitution of India, what is Article {number}?",
    ),
    "which": (
        'Which article of the Constitution of India has the title "{title}"?',
        "Which article of the Indian Constitution deals with this: {title}?",
        "Article number for: {title} (Constitution of India)",
        "Where does the Constitution of India regulate: {title}?",
    ),
}

NEW: dict[str, tuple[str, ...]] = {
    "category": (
        "Someone sent me these licence terms. In which of the four groups are they?\n\n{text}",
        "Judge by its wording what class of licence the following is.\n\n{text}",
        "{text}\n\nHow is a licence like this classified?",
        "Please tell me what type of licence I am looking at:\n\n{text}",
        "We found the text below in a dependency; what category of licence does it have?\n\n{text}",
    ),
    "article": (
        "Below is a passage of India's constitution. How is the article headed?\n\n{text}",
        "{text}\n\nWhat heading does the Constitution of India give this article?",
        "State the title that belongs to this constitutional text.\n\n{text}",
        "Find the right title for the following article of India's basic law.\n\n{text}",
    ),
}
