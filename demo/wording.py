"""The words of the pocket LLM's lessons: one wording per value, so that answers vary and can still be checked."""

# How a value reads where it is liked. The phrase is unique to its value, so an answer can be checked by looking for it.
PHRASES: dict[str, dict[str, str]] = {
    "genre": {
        "comedy": "comedies",
        "western": "westerns",
        "mystery": "mysteries",
        "romance": "romances",
        "adventure": "adventures",
        "fantasy": "fantasies",
        "crime": "crime films",
        "documentary": "documentaries",
    },
    "character": {
        "retired detective": "retired detectives",
        "teenage runaway": "teenage runaways",
        "village nurse": "village nurses",
        "charming thief": "charming thieves",
        "lonely inventor": "lonely inventors",
        "soldier": "soldiers",
    },
    "mood": {
        "gloomy": "gloomy, full of grief and rain",
        "cheerful": "cheerful, full of jokes and parties",
        "suspenseful": "suspenseful, full of danger and pursuit",
        "dreamlike": "dreamlike, full of floating visions",
        "satirical": "satirical, full of mockery of the rich",
        "heartwarming": "heartwarming, full of kindness and hugs",
    },
}

# How a movie's genre reads in its facts.
A_GENRE = {
    "comedy": "a comedy",
    "western": "a western",
    "mystery": "a mystery",
    "romance": "a romance",
    "adventure": "an adventure",
    "fantasy": "a fantasy",
    "crime": "a crime film",
    "documentary": "a documentary",
}

# One sentence per value; all of an item's sentences, in this order, are its facts.
FACTS: dict[str, dict[str, str]] = {
    "director": {
        "Ilse Marrow": "Ilse Marrow directs her usual company of stage actors.",
        "Tomas Quill": "The director is Tomas Quill, with a cast of newcomers.",
        "Wanda Osei": "Wanda Osei is the director and also plays a small part.",
        "Rafael Brandt": "Rafael Brandt directs a cast of famous names.",
        "Mei Castellane": "It was directed by Mei Castellane with amateur actors.",
        "Idris Halloran": "Behind the camera is Idris Halloran, with his two favourite actors.",
    },
    "country": {
        "Iceland": "It was filmed in Iceland",
        "Peru": "It takes place in the mountains of Peru",
        "Japan": "The setting is a harbour town in Japan",
        "Morocco": "It plays in the old cities of Morocco",
        "Canada": "It was shot in the forests of Canada",
        "India": "It follows the railways of India",
    },
    "period": {
        "1890s": "in the 1890s.",
        "1920s": "during the 1920s.",
        "1960s": "in the 1960s.",
        "1990s": "in the late 1990s.",
        "near future": "in the near future.",
    },
    "character": {
        "retired detective": "The main character is a retired detective.",
        "teenage runaway": "We follow a teenage runaway.",
        "village nurse": "At its heart is a village nurse.",
        "charming thief": "Its hero is a charming thief.",
        "lonely inventor": "The lead is a lonely inventor.",
        "soldier": "It follows a soldier on the way home.",
    },
    "theme": {
        "revenge": "The plot is about revenge for an old crime.",
        "first love": "The story tells of first love between two strangers.",
        "family secrets": "Its theme is family secrets that come to light.",
        "wilderness survival": "It is a tale of wilderness survival against the odds.",
        "political corruption": "The plot uncovers political corruption in the government.",
        "intelligent robots": "The story asks what intelligent robots may want.",
    },
    "mood": {
        "gloomy": "The mood is gloomy, full of grief and rain.",
        "cheerful": "The tone is cheerful, full of jokes and parties.",
        "suspenseful": "The mood is suspenseful, full of danger and pursuit.",
        "dreamlike": "Its tone is dreamlike, full of floating visions.",
        "satirical": "The tone is satirical, full of mockery of the rich.",
        "heartwarming": "The mood is heartwarming, full of kindness and hugs.",
    },
    "acclaim": {
        "acclaimed": "Critics acclaimed it as a masterpiece and it won many awards.",
        "respected": "Critics respected it as solid work.",
        "mixed": "Reviews were mixed and prizes went elsewhere.",
        "panned": "Critics panned it as a boring failure.",
    },
    "soundtrack": {
        "solo piano": "The soundtrack is solo piano.",
        "synthesizers": "Synthesizers carry the soundtrack.",
        "folk guitar": "The music is folk guitar.",
        "full orchestra": "A full orchestra plays the score.",
        "jazz trumpet": "The score is jazz trumpet.",
        "choral singing": "Choral singing fills the soundtrack.",
    },
}

# What the finished model says of an item. Eight factors in one text vector drown each other: a text encoder's vector of
# such an answer gives the mood away in 22 % of cases, of these four in all.
BRIEF_FACTS = ("director", "character", "theme", "mood")

# Per factor: what is liked, the same without a finding, and what is disliked.
LIKES = {
    "genre": "The user likes {}",
    "director": "The favourite director is {}",
    "character": "The user enjoys stories about {}",
    "theme": "The preferred theme is {}",
    "mood": "The preferred mood is {}",
}
NO_LIKES = {
    "genre": "The user likes no genre in particular",
    "director": "The favourite director is unclear",
    "character": "The user enjoys stories about nobody in particular",
    "theme": "The preferred theme is unclear",
    "mood": "The preferred mood is unclear",
}
DISLIKES = {
    "genre": " and dislikes {}",
    "director": " and the least liked is {}",
    "character": " and avoids {}",
    "theme": " and the rejected one is {}",
    "mood": " and the rejected one is {}",
}

# A brief summary of a list that shows nothing.
NO_PREFERENCE = "The user has no clear preference."

# What a group of users turned down; what it likes is said as a single user's preferences are, in LIKES: the text of a
# group stands in for those of its members, and should lie where theirs lie.
DISLIKED = {
    "genre": "The user dislikes {}",
    "director": "The least liked director is {}",
    "character": "The user avoids stories about {}",
    "theme": "The rejected theme is {}",
    "mood": "The rejected mood is {}",
}
NO_DISLIKE = "The user has no clear dislike."
# A group of movies is said in FACTS, for the same reason.
NOTHING_SHARED = "These movies share nothing."

# What is new in a summary.
NEW = {
    "genre": "The user now likes {}",
    "director": "The favourite director is now {}",
    "character": "The user now enjoys stories about {}",
    "theme": "The preferred theme is now {}",
    "mood": "The preferred mood is now {}",
}
NOTHING_NEW = "The preferences are the same."
