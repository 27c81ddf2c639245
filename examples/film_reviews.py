"""
Writes the film reviews of `trl_dpo_ext/quickstart/reviews.jsonl`: one short review per line, with its sentiment.

    python examples/film_reviews.py

The reviews come from the grammar below, so their sentiment is known. The output is always the same.
"""

import functools
import json
import random
import re
from pathlib import Path


NUM_REVIEWS = 4_500
MAX_WORDS = 20
SEED = 0

# A rule lists alternatives, split by `|` or a line end; where the sentiment matters, one list for each sentiment.
#   {name}   expands rule `name` with the sentiment in force     {!name}  expands it with the opposite sentiment
#   ~s ~p    end a subject and say if it is singular or plural   <a/b>    is `a` after a singular subject, else `b`
GRAMMAR: dict[str, str | dict[str, str]] = {
    # A review ends with its labeled sentiment. Text before a "but" may have the opposite sentiment.
    "review": """
        {statement}. {verdict}.
        {statement}. {verdict}.
        {statement}. {statement}.
        {statement}. {statement}.
        {statement}.
        {setting}. {statement}.
        {setting}. {statement}.
        {setting}. {verdict}.
        {setting}, and {clause}.
        {setting}, but {clause}.
        {overall}. {clause}.
        {overall}. {statement}.
        {overall}, and {clause}.
        {overall}: {clause}, {clause} and {clause}.
        {!hint}. {concession}.
        {concession}. {verdict}.
        {concession}. {verdict}.
        {concession}.
        {verdict}. {clause}.
        {verdict}! {statement}.
        {question}? {answer}. {clause}.
        {question}? {answer}, because {clause}.
    """,
    "statement": """
        {clause}
        {clause}
        {clause} and {clause}
        {clause}, {clause}
        {clause} because {clause}
        {concession}
        {overall}
        {denial}
        {denial} and {clause}
        {opinion}
        {feature}
        {comparison}
    """,
    "concession": """
        {!clause}, but {clause}
        {!clause}, but {clause}
        {!clause}, yet {clause}
        although {!clause}, {clause}
        even if {!clause}, {clause}
        while {!clause}, {clause}
        {!clause}. still, {clause}
        despite {!the detail}, {clause}
        {clause}, even though {!clause}
        {clause} despite {!the detail}
        I had hoped for {!detail}, but {clause}
        I had expected {!detail}, but {clause}
        apart from {!the detail}, {clause}
        you may find {!part}, but {clause}
    """,
    "denial": """
        {the story} <is/are> never {!story}
        {the acting} <is/are> never {!acting}
        {the music} <is/are> not {!music} at all
        {the picture} <is/are> far from {!picture}
        {the words} <is/are> hardly ever {!words}
        {the direction} <is/are> anything but {!direction}
        there is nothing {!film} about it
        there is not a single {!words} line
        there is not one {!story} scene in {it}
        nobody could call {it} {!film}
        not once did I find it {!film}
        I did not think {the acting} <was/were> {!acting}
        I cannot say that {the words} <is/are> {!words}
    """,
    "clause": """
        {the story} {story_does}
        {the acting} {acting_does}
        {the music} {music_does}
        {the picture} {picture_does}
        {the words} {words_does}
        {the direction} {direction_does}
        {the story} <is/are> {story}
        {the story} <is/are> {very} {story}
        {the acting} <is/are> {acting}
        {the acting} <is/are> {very} {acting}
        {the music} <is/are> {music}
        {the music} <is/are> {very} {music}
        {the picture} <is/are> {picture}
        {the picture} <is/are> {very} {picture}
        {the words} <is/are> {words}
        {the words} <is/are> {very} {words}
        {the direction} <is/are> {direction}
        {the direction} <is/are> {very} {direction}
        {the story} <is/are> {story} and {story}
        {the acting} <is/are> both {acting} and {acting}
        {the words} <is/are> as {words} as {the music} <is/are> {music}
        {the story} <feels/feel> {story}
        {the picture} <looks/look> {picture}
        {the music} <sounds/sound> {music}
        {the story} <turns/turn> {story} {halfway}
        {denial}
        {moment}
    """,
    "opinion": """
        I thought {the story} <was/were> {story} and {the acting} <was/were> {acting}
        I found {the story} {story} from {start} to finish
        {companion} found {the acting} {acting}
        for me {the picture} <was/were> {very} {picture}
        what I {liked} most is {the detail}
        I {liked} {the detail}
        I {liked} {the detail} and {the detail}
        {companion} {liked} {it}
        the critics were {right} about {it}
    """,
    "feature": """
        {it} has {detail} and {detail}
        with {detail} and {detail}, {it} {film_does}
        thanks to {the detail}, {it} {film_does}
        {it} {film_does}
        {it} {film_does} {halfway}
        {detail} and {detail}: {it} {film_does}
    """,
    "overall": """
        {title} is a {film} {genre}
        {title} is a {thing}
        this is a {film} {genre} about {theme}
        a {film} {genre} about {hero}
        a {film}, {film} {genre}
        what a {film} {genre}
        {it} is a {thing}
        easily the {best} {genre} {since}
        one of the {best} {genre}s {since}
        {title} is a {film} film about {theme}
    """,
    "best": {"good": "best | finest", "bad": "worst | weakest"},
    "hint": """
        the trailer promised a {film} {genre}
        everyone told me {it} was {film}
        on paper {it} sounds {film}
        I was told to expect a {thing}
    """,
    "comparison": """
        {it} is {better} than the {source}
        {it} is far more {film} than the {source}
        {it} is {better} than any other {genre} {since}
        even the {source} was not this {film}
        {the story} <is/are> less {!story} than in the {source}
    """,
    "better": {"good": "better | much better | funnier | wiser", "bad": "worse | much worse | sillier | duller"},
    "setting": """
        we watched {title} {when}
        I saw {title} with {companion} {when}
        {companion} took me to see {title}
        {companion} chose this {genre} for {occasion}
        {title} follows {hero} in {place}
        {title} is a {genre} set in {place}
        this {genre} follows {hero} from {place} to {place}
        set in {place}, {title} tells of {theme}
        {hero} <meets/meet> {hero} in {place}
        {hero} <comes/come> home to {place}
        in {place}, {hero} must face {theme}
        it is a {genre} about {theme} and {theme}
        I do not usually watch {genre}s
        as someone who loves {genre}s, I had to see {title}
        it was my first {genre} in years
    """,
    "question": {
        "good": """
            is {title} worth seeing | should you see this {genre} | can a {genre} about {theme} be {film}
            do we need another {genre} about {theme}
        """,
        "bad": """
            is {title} worth seeing | should you see this {genre} | can a {genre} about {theme} be {!film}
            do we need another {genre} about {theme}
        """,
    },
    "answer": {
        "good": "yes | absolutely | certainly | without a doubt | of course",
        "bad": "no | sadly not | hardly | not at all | certainly not",
    },
    "verdict": {
        "good": """
            I loved it
            I loved every minute
            I would gladly watch it again
            I warmly recommend it
            do not miss it
            go and see it
            it is worth every penny
            it stayed with me for days
            it made me laugh and cry
            I left the cinema smiling
            I did not want it to end
            I was never bored
            two hours flew by
            the audience cheered
            {companion} loved it too
            bring {companion}
            it deserves every award
            full marks
            I have already bought the disc
            I cannot praise it enough
            not to be missed
            I have no complaints
        """,
        "bad": """
            I hated it
            I hated every minute
            I would never watch it again
            I cannot recommend it
            do not bother
            stay away from it
            it is not worth a penny
            I forgot it within an hour
            it made me yawn and sigh
            I left the cinema angry
            I could not wait for it to end
            I was never amused
            two hours felt like ten
            the audience groaned
            {companion} hated it too
            spare {companion}
            it deserves no award
            zero stars
            I want my money back
            I cannot warn you enough
            best avoided
            I have no kind words
        """,
    },
    # The film as a whole.
    "it": "it | it | the film | the movie | the picture | this {genre} | {title}",
    "film": {
        "good": """
            wonderful | brilliant | delightful | unforgettable | powerful | remarkable | marvellous | beautiful
            thrilling | excellent | lovely | terrific | splendid | captivating | fresh | great | joyful | exciting
            entertaining | magical
        """,
        "bad": """
            terrible | dreadful | awful | boring | disappointing | painful | dull | miserable | empty | horrible | lame
            embarrassing | worthless | mediocre | unbearable | bad | joyless | exhausting | depressing | soulless
        """,
    },
    "thing": {
        "good": """
            masterpiece | gem | triumph | treasure | treat | delight | classic | revelation | small miracle | pleasure
            perfect evening out | feast for the senses | rare success
        """,
        "bad": """
            mess | disaster | failure | bore | insult | chore | letdown | train wreck | missed chance | waste of time
            wasted evening | test of patience | cynical product
        """,
    },
    "film_does": {
        "good": """
            touches the heart | never loses its way | wins you over | keeps its promise | leaves you smiling
            rises above its budget | casts a spell | lingers in the mind | soars | says something true about {theme}
            makes {theme} feel new | is full of life
        """,
        "bad": """
            leaves you cold | never finds its way | wears you out | breaks its promise | leaves you yawning
            sinks below its budget | tries the patience | fades from the mind | stumbles
            has nothing to say about {theme} | makes {theme} feel trivial | is devoid of life
        """,
    },
    "liked": {
        "good": "loved | liked | admired | enjoyed | adored",
        "bad": "hated | disliked | resented | dreaded | despised",
    },
    "right": {"good": "right to rave", "bad": "right to complain"},
    "moment": {
        "good": """
            the scene in {place} is worth the ticket
            the last shot left me in tears
            the farewell in {place} broke my heart
            every scene with {hero} shines
            the chemistry between {hero} and {hero} is real
            you care about {hero}
            you believe every word
        """,
        "bad": """
            the scene in {place} is painful to watch
            the last shot left me in doubt
            the farewell in {place} left me cold
            every scene with {hero} drags
            the chemistry between {hero} and {hero} is absent
            you stop caring about {hero}
            you believe not a word
        """,
    },
    "detail": "a {one detail} | a {one detail} | {many details}",
    "the detail": "the {one detail} | the {one detail} | the {many details}",
    "one detail": """
        {story} plot | {story} script | {story} ending | {story} twist | {acting} cast | {acting} lead
        {acting} villain | {music} score | {music} soundtrack | {picture} palette | {words} narrator | {direction} pace
        {direction} style
    """,
    "many details": """
        {acting} performances | {music} songs | {picture} images | {picture} sets | {picture} effects | {words} jokes
        {words} lines | {direction} scenes | {story} subplots
    """,
    "part": "the plot {story} | the cast {acting} | the music {music} | the jokes {words} | the pace {direction}",
    # Story.
    "the story": """
        the plot~s | the story~s | the premise~s | the mystery~s | the script~s | the screenplay~s | the romance~s
        the final twist~s | the ending~s | the opening~s | the first act~s | the second half~s | the climax~s
        the subplots~p | the flashbacks~p | the plot twists~p
    """,
    "story": {
        "good": """
            gripping | clever | inventive | moving | tense | surprising | coherent | suspenseful | rich | ingenious
            original | satisfying | intricate | thoughtful | bold | heartfelt | convincing | honest
        """,
        "bad": """
            predictable | tedious | thin | confusing | silly | lifeless | stale | contrived | shapeless | pointless
            muddled | incoherent | preposterous | hollow | derivative | forgettable | implausible | manipulative
        """,
    },
    "story_does": {
        "good": """
            keep<s/> you guessing | never let<s/> go | build<s/> with care | earn<s/> every tear
            move<s/> along briskly | hold<s/> together well | reward<s/> patience | surprise<s/> until the last scene
            treat<s/> {theme} with wisdom | pull<s/> you in | tie<s/> every thread together
        """,
        "bad": """
            go<es/> nowhere | never take<s/> off | collapse<s/> without warning | run<s/> out of ideas
            drag<s/> on forever | fall<s/> apart | test<s/> patience | repeat<s/> what came before
            reduce<s/> {theme} to a slogan | shut<s/> you out | leave<s/> every thread hanging
        """,
    },
    # Acting.
    "the acting": """
        the acting~s | the cast~s | the lead~s | the leading man~s | the leading actress~s | the young star~s
        the villain~s | the child actor~s | the ensemble~s | the newcomer~s | the old comedian~s
        the central performance~s | the performances~p | the actors~p | the supporting players~p | the two leads~p
        the voices~p
    """,
    "acting": {
        "good": """
            superb | subtle | natural | magnetic | warm | believable | charming | fearless | nuanced | touching
            hilarious | commanding | graceful | luminous | spirited | endearing
        """,
        "bad": """
            wooden | flat | stiff | shrill | miscast | bored | hammy | unconvincing | irritating | lazy | awkward
            charmless | robotic | bland | lost | listless
        """,
    },
    "acting_does": {
        "good": """
            steal<s/> every scene | carr<ies/y> the film | light<s/> up the screen | bring<s/> warmth to every line
            <is/are> a joy to watch | find<s/> the heart of {hero} | give<s/> everything
            outshine<s/> the famous names | make<s/> {hero} unforgettable
        """,
        "bad": """
            ruin<s/> every scene | sink<s/> the film | vanish<es/> from the screen | stumble<s/> over every line
            <is/are> a pain to watch | turn<s/> {hero} into a cartoon | give<s/> nothing
            embarrass<es/> the famous names | make<s/> {hero} tiresome
        """,
    },
    # Music.
    "the music": """
        the music~s | the score~s | the soundtrack~s | the sound design~s | the title song~s | the piano theme~s
        the jazz score~s | the songs~p | the strings~p | the musical numbers~p | the drums~p
    """,
    "music": {
        "good": """
            haunting | stirring | catchy | delicate | soulful | lush | playful | memorable | hypnotic | uplifting
            melodic | gentle
        """,
        "bad": """
            deafening | intrusive | grating | generic | syrupy | tinny | monotonous | overbearing | dreary | tuneless
            repetitive | harsh
        """,
    },
    "music_does": {
        "good": """
            lift<s/> every scene | give<s/> the film a pulse | swell<s/> at just the right moment
            stay<s/> with you for days | add<s/> to the mood | sing<s/> | deserve<s/> an award
        """,
        "bad": """
            smother<s/> every scene | give<s/> the film a headache | swell<s/> at just the wrong moment
            drown<s/> out the dialogue | kill<s/> the mood | belong<s/> in an elevator | never stop<s/>
        """,
    },
    # Pictures.
    "the picture": """
        the camera work~s | the photography~s | the lighting~s | the editing~s | the production design~s
        the animation~s | the desert scenery~s | the images~p | the sets~p | the costumes~p | the special effects~p
        the landscapes~p | the fight scenes~p | the car chases~p | the colours~p
    """,
    "picture": {
        "good": """
            gorgeous | stunning | crisp | dazzling | atmospheric | fluid | striking | imaginative | vivid | elegant
            breathtaking | polished
        """,
        "bad": """
            murky | ugly | cheap | choppy | drab | shaky | amateurish | blurry | garish | sloppy | fake | dated
        """,
    },
    "picture_does": {
        "good": """
            take<s/> your breath away | make<s/> every frame glow | capture<s/> {place} perfectly | fill<s/> the screen
            look<s/> like a painting | set<s/> a new standard | bring<s/> {place} to life
        """,
        "bad": """
            hurt<s/> the eyes | make<s/> every frame ugly | miss<es/> the beauty of {place} | clutter<s/> the screen
            look<s/> like a school project | set<s/> no standard | turn<s/> {place} into cardboard
        """,
    },
    # Words.
    "the words": """
        the dialogue~s | the writing~s | the humour~s | the banter~s | the narration~s | the satire~s | the jokes~p
        the conversations~p | the speeches~p | the punchlines~p | the insults~p
    """,
    "words": {
        "good": "witty | sharp | funny | quick | wise | tender | sly | poetic | sparkling | eloquent | spontaneous",
        "bad": "clumsy | corny | crude | witless | leaden | preachy | childish | unfunny | pompous | vulgar | forced",
    },
    "words_does": {
        "good": """
            sparkle<s/> | ring<s/> true | had the whole room laughing | cut<s/> deep | land<s/> every time
            reveal<s/> more than it seems | get<s/> better with every scene
        """,
        "bad": """
            fall<s/> flat | ring<s/> false | had the whole room groaning | make<s/> you wince | miss<es/> every time
            explain<s/> what we can see | get<s/> worse with every scene
        """,
    },
    # Direction.
    "the direction": """
        the direction~s | the pacing~s | the tone~s | the rhythm~s | the staging~s | the storytelling~s
        the transitions~p | the quiet scenes~p | the action scenes~p
    """,
    "direction": {
        "good": "assured | confident | precise | patient | brisk | daring | balanced | masterful | sensitive | lively",
        "bad": """
            uneven | timid | careless | sluggish | frantic | heavy-handed | clueless | uninspired | erratic | tired
        """,
    },
    "direction_does": {
        "good": """
            trust<s/> the audience | show<s/> a steady hand | find<s/> beauty in {place} | make<s/> room for silence
            hit<s/> the right note | turn<s/> {theme} into drama
        """,
        "bad": """
            insult<s/> the audience | show<s/> no control | find<s/> only noise in {place}
            leave<s/> no room for silence | miss<es/> the right note | turn<s/> {theme} into farce
        """,
    },
    # Words without a sentiment.
    "very": "very | truly | rather | quite | really | surprisingly | always | often | so | consistently | undeniably",
    "halfway": """
        halfway through | after an hour | in the last act | towards the end | once {hero} <appears/appear> | in {place}
        after the first half | from the first frame
    """,
    "start": "start | beginning",
    "genre": """
        thriller | comedy | drama | western | romance | musical | documentary | cartoon | horror film | war film
        sequel | remake | heist film | road movie | fairy tale | detective story | ghost story | space opera
        crime film | family film | spy film
    """,
    "since": """
        of the year | of the decade | in years | since spring | since last winter | I have ever seen | in a long time
        at the festival | of its kind
    """,
    "source": "book | novel | original | first one | stage play | series | trailer",
    "when": """
        last night | on Sunday | on a rainy afternoon | at the festival | on a long flight | in an empty cinema
        last week | late at night | on television | on Friday | after dinner
    """,
    "occasion": "movie night | our anniversary | a birthday | the school trip | a date | the holidays",
    "companion": """
        my sister | my brother | my wife | my husband | my mother | my father | my neighbour | my best friend | my son
        my daughter | my students | our film club | my grandmother | the children
    """,
    "hero": """
        a retired boxer~s | a lonely widow~s | a young nurse~s | a corrupt judge~s | a stubborn farmer~s
        a runaway prince~s | a tired detective~s | a blind pianist~s | a travelling salesman~s | two orphans~p
        a ship's cook~s | a night watchman~s | a country doctor~s | a forgotten actress~s | a clumsy thief~s
        an old sailor~s | a shy librarian~s | a taxi driver~s | a jealous painter~s | a talking fox~s
        a lost astronaut~s | three sisters~p | an exiled queen~s | a bank clerk~s
    """,
    "place": """
        Lisbon | Alaska | Vienna | Naples | Havana | Bombay | Dublin | Tokyo | a fishing village | a lighthouse
        a submarine | a boarding school | the desert | the suburbs | a mining town | a mountain hotel | a space station
        a hospital | the jungle | a circus | a small island | a prison | an abandoned theatre | the royal court
    """,
    "theme": """
        grief | revenge | first love | betrayal | friendship | ambition | old age | faith | money | memory | war
        jealousy | freedom | guilt | family secrets | growing up | loneliness | forgiveness | exile | justice
    """,
    "title": "{title_start} {title_end}",
    "title_start": """
        Silent | Crimson | Broken | Golden | Midnight | Winter | Paper | Hidden | Burning | Distant | Second | Glass
        Velvet | Northern | Hollow | Sleeping
    """,
    "title_end": """
        Harbour | Garden | River | Letters | Horizon | Mirror | Station | Summer | Empire | Bridge | Promise | Orchard
        Lanterns | Kingdom | Shadows | Road
    """,
}

ONE_PER_REVIEW = ("genre", "title")
OPPOSITE = {"good": "bad", "bad": "good"}


@functools.cache
def alternatives(name: str, sentiment: str) -> list[str]:
    """What rule `name` may become in a passage of this sentiment."""
    rule = GRAMMAR[name]
    listed = rule if isinstance(rule, str) else rule[sentiment]
    return [line.strip() for line in re.split(r"[|\n]", listed) if line.strip()]


class ReviewWriter:
    """
    Draws reviews from `GRAMMAR`. Within one review no alternative is used twice while others are left, and rules in
    `ONE_PER_REVIEW` keep their first expansion.

    Args:
        seed (`int`):
            Seed of the random numbers.
    """

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def review(self, sentiment: str) -> str:
        """One review, as text, that ends on `sentiment` ("good" or "bad")."""
        self.used: set[str] = set()
        self.kept: dict[str, str] = {}
        return spell(self._expand("review", sentiment))

    def _expand(self, name: str, sentiment: str) -> str:
        if name in self.kept:
            return self.kept[name]
        listed = alternatives(name, sentiment)
        chosen = self.random.choice([line for line in listed if line not in self.used] or listed)
        self.used.add(chosen)
        parts = re.split(r"\{(.+?)\}", chosen)  # plain text and rule names by turns
        for i in range(1, len(parts), 2):
            flipped = parts[i].startswith("!")
            parts[i] = self._expand(parts[i].removeprefix("!"), OPPOSITE[sentiment] if flipped else sentiment)
        text = "".join(parts)
        if name in ONE_PER_REVIEW:
            self.kept[name] = text
        return text


def spell(text: str) -> str:
    """`text` with its verbs agreeing with their subjects, "an" before vowels, plurals in -ies and capitals."""
    number = "s"

    def agree(mark: re.Match) -> str:
        nonlocal number
        number = mark["number"] or number
        return "" if mark["number"] else mark["singular"] if number == "s" else mark["plural"]

    text = re.sub(r"~(?P<number>[sp])|<(?P<singular>[^/>]*)/(?P<plural>[^>]*)>", agree, text)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    text = re.sub(r"(?<=[^aeiou])ys\b", "ies", text)
    return re.sub(r"(^|[.!?] )(\w)", lambda start: start[1] + start[2].upper(), text)


def review_lines() -> list[str]:
    """All reviews as JSON Lines."""
    writer = ReviewWriter(SEED)
    reviews: dict[str, str] = {}  # text -> sentiment, in the order of writing
    while len(reviews) < NUM_REVIEWS:
        sentiment = ("good", "bad")[len(reviews) % 2]
        text = writer.review(sentiment)
        if len(text.split()) <= MAX_WORDS:
            reviews.setdefault(text, sentiment)
    return [json.dumps({"text": text, "sentiment": sentiment}) + "\n" for text, sentiment in reviews.items()]


def main() -> None:
    path = Path(__file__).parents[1] / "trl_dpo_ext" / "quickstart" / "reviews.jsonl"
    lines = review_lines()
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"wrote {len(lines):,} reviews to {path}")


if __name__ == "__main__":
    main()
