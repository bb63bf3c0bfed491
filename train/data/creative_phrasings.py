"""How literature is asked for; half of the test lines use phrasings that no training line has (`NEW`)."""

SEEN: dict[str, tuple[str, ...]] = {
    "definition": (
        "Define {word} in the manner of the Devil's Dictionary.",
        "Give a cynical definition of {word}.",
        'Write a satirical dictionary entry for "{word}".',
        "How would Ambrose Bierce define {word}?",
        "{word}: a witty definition, please.",
        "Write an ironic definition of the word {word}.",
        "Make fun of the word {word} in a dictionary entry.",
        "What would a cynic say that {word} means?",
        "A sardonic definition of {word}",
        "Be sarcastic: what is {word}?",
    ),
    "verse": (
        "Write a satirical verse about {word}.",
        "Write a few mocking lines of verse on {word}.",
        "Compose a short humorous poem about {word}.",
        "A rhyme about {word}, please, in nineteenth-century style.",
        "Give me a witty poem on the subject of {word}.",
        "Write some rhyming lines on {word}.",
        "Poem: {word}",
        "Make up a poem in which {word} is mocked.",
    ),
    "more": (
        "Continue this satirical piece about {word}:\n\n{before}",
        "Write the next paragraph.\n\n{before}",
        "{before}\n\nGo on in the same style.",
        "How could this text about {word} continue?\n\n{before}",
    ),
    "tang": (
        "写一首唐诗，题目是《{title}》。",
        "请以《{title}》为题写一首唐诗。",
        "仿{author}的风格写一首诗，题为《{title}》。",
        "作诗：《{title}》，作者{author}",
        "Write a Tang poem in Chinese titled 《{title}》.",
        "Compose a classical Chinese poem in the style of {author}: 《{title}》",
        "请写一首古诗《{title}》。",
        "《{title}》 {author}",
    ),
    "song": (
        "写一首宋诗，题目是《{title}》。",
        "请以《{title}》为题写一首宋代的诗。",
        "仿{author}的风格写一首诗，题为《{title}》。",
        "作诗：《{title}》，作者{author}",
        "Write a Song dynasty poem in Chinese titled 《{title}》.",
        "Compose a classical Chinese poem in the style of {author}: 《{title}》",
        "请写一首古诗《{title}》。",
        "《{title}》 {author}",
    ),
    "next": (
        "接着写这首诗：\n{before}",
        "请续写：\n{before}",
        "{before}\n下面几句是什么？",
        "Continue this Chinese poem:\n{before}",
    ),
}

NEW: dict[str, tuple[str, ...]] = {
    "definition": (
        "If you were a bitter humorist, how would you explain {word}?",
        "I want a definition of {word} that makes people smile wryly.",
        "Invent a mordant dictionary definition for {word}.",
        "Please define {word} with biting wit.",
    ),
    "verse": (
        "Put some comic verse together that deals with {word}.",
        "Could you rhyme a little about {word}?",
        "I would like a mocking poem; its theme is {word}.",
    ),
    "tang": (
        "我想要一首名为《{title}》的唐代诗歌。",
        "以{author}的口吻作《{title}》一诗。",
        "Please write a poem like those of the Tang dynasty, in Chinese, called 《{title}》.",
    ),
    "song": (
        "我想要一首名为《{title}》的宋代诗歌。",
        "以{author}的口吻作《{title}》一诗。",
        "Please write a poem like those of the Song dynasty, in Chinese, called 《{title}》.",
    ),
}
