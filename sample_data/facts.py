"""The tables of facts and the awkward texts behind the sample; plain data, written for this project."""

from __future__ import annotations


def _pairs(text: str) -> list[tuple[str, str]]:
    """`a: b; c: d` as pairs."""
    return [(left.strip(), right.strip()) for left, right in (entry.split(":", 1) for entry in text.split(";"))]


CAPITALS = _pairs(
    "Argentina: Buenos Aires; Australia: Canberra; Austria: Vienna; Bangladesh: Dhaka; Belgium: Brussels; "
    "Brazil: Brasília; "
    "Bulgaria: Sofia; Canada: Ottawa; Chile: Santiago; China: Beijing; Colombia: Bogotá; Croatia: Zagreb; "
    "Cuba: Havana; "
    "Czechia: Prague; Denmark: Copenhagen; Ecuador: Quito; Egypt: Cairo; Estonia: Tallinn; Ethiopia: Addis Ababa; "
    "Finland: Helsinki; France: Paris; Georgia: Tbilisi; Germany: Berlin; Ghana: Accra; Greece: Athens; "
    "Hungary: Budapest; "
    "Iceland: Reykjavík; India: New Delhi; Indonesia: Jakarta; Iran: Tehran; Iraq: Baghdad; Ireland: Dublin; "
    "Italy: Rome; "
    "Jamaica: Kingston; Japan: Tokyo; Jordan: Amman; Kenya: Nairobi; Latvia: Riga; Lebanon: Beirut; "
    "Lithuania: Vilnius; "
    "Mali: Bamako; Mexico: Mexico City; Mongolia: Ulaanbaatar; Morocco: Rabat; Nepal: Kathmandu; "
    "Netherlands: Amsterdam; "
    "New Zealand: Wellington; Nigeria: Abuja; Norway: Oslo; Pakistan: Islamabad; Paraguay: Asunción; Peru: Lima; "
    "Philippines: Manila; Poland: Warsaw; Portugal: Lisbon; Romania: Bucharest; Rwanda: Kigali; Saudi Arabia: Riyadh; "
    "Senegal: Dakar; Serbia: Belgrade; Singapore: Singapore; Slovakia: Bratislava; Slovenia: Ljubljana; "
    "South Korea: Seoul; "
    "Spain: Madrid; Sweden: Stockholm; Syria: Damascus; Thailand: Bangkok; Tunisia: Tunis; Turkey: Ankara; "
    "Uganda: Kampala; "
    "Ukraine: Kyiv; Uruguay: Montevideo; Venezuela: Caracas; Vietnam: Hanoi; Zambia: Lusaka"
)

RIVERS = _pairs(
    "Nile: Mediterranean Sea; Danube: Black Sea; Rhine: North Sea; Volga: Caspian Sea; Amazon: Atlantic Ocean; "
    "Mississippi: Gulf of Mexico; Ganges: Bay of Bengal; Mekong: South China Sea; Indus: Arabian Sea; "
    "Lena: Laptev Sea; "
    "Zambezi: Indian Ocean; Ebro: Mediterranean Sea; Loire: Bay of Biscay; Vistula: Baltic Sea; Yukon: Bering Sea"
)

ELEMENTS = _pairs(
    "H: hydrogen; He: helium; Li: lithium; Be: beryllium; B: boron; C: carbon; N: nitrogen; O: oxygen; F: fluorine; "
    "Ne: neon; Na: sodium; Mg: magnesium; Al: aluminium; Si: silicon; P: phosphorus; S: sulfur; Cl: chlorine; "
    "Ar: argon; "
    "K: potassium; Ca: calcium; Sc: scandium; Ti: titanium; V: vanadium; Cr: chromium; Mn: manganese; Fe: iron; "
    "Co: cobalt; Ni: nickel; Cu: copper; Zn: zinc; Ga: gallium; Ge: germanium; As: arsenic; Se: selenium; "
    "Br: bromine; "
    "Kr: krypton; Rb: rubidium; Sr: strontium; Y: yttrium; Zr: zirconium; Nb: niobium; Mo: molybdenum; "
    "Tc: technetium; "
    "Ru: ruthenium; Rh: rhodium; Pd: palladium; Ag: silver; Cd: cadmium; In: indium; Sn: tin; Sb: antimony; "
    "Te: tellurium; I: iodine; Xe: xenon; Cs: caesium; Ba: barium"
)

EVENTS = [
    (int(year), event)
    for year, event in _pairs(
        "1066: the Battle of Hastings was fought; 1215: Magna Carta was sealed; "
        "1453: Constantinople fell to the Ottomans; "
        "1492: Columbus first reached the Americas; 1517: Luther published his ninety-five theses; "
        "1588: the Spanish Armada sailed against England; 1648: the Peace of Westphalia was signed; "
        "1687: Newton's Principia was published; 1755: an earthquake destroyed Lisbon; "
        "1776: the American Declaration of Independence was adopted; 1789: the Bastille was stormed; "
        "1804: Haiti became independent; 1815: the Battle of Waterloo was fought; "
        "1848: revolutions spread through Europe; "
        "1859: On the Origin of Species was published; 1869: the Suez Canal was opened; "
        "1876: Bell was granted his telephone patent; 1889: the Eiffel Tower was opened; "
        "1903: the Wright brothers made their first powered flight; 1911: Amundsen reached the South Pole; "
        "1912: the Titanic sank; 1914: the First World War began; 1917: the October Revolution took place; "
        "1928: Fleming discovered penicillin; 1945: the United Nations was founded; 1947: India became independent; "
        "1953: Everest was first climbed; 1957: Sputnik 1 was launched; 1961: Gagarin orbited the Earth; "
        "1969: people first walked on the Moon; 1986: the Chernobyl reactor exploded; "
        "1989: the Berlin Wall was opened; "
        "1990: the Hubble telescope was launched; 1994: the Channel Tunnel was opened; 2004: Facebook was founded; "
        "2012: the Higgs boson was announced"
    )
]

UNITS = _pairs(
    "kilometre: metres; mile: kilometres; foot: centimetres; yard: feet; nautical mile: metres; hour: seconds; "
    "day: minutes; week: hours; kilogram: grams; pound: ounces; tonne: kilograms; litre: millilitres; gallon: litres; "
    "acre: square metres; hectare: square metres; kilobyte: bytes; kilowatt-hour: joules; light-minute: kilometres; "
    "fortnight: days; century: years; dozen: pieces; gross: dozens; fathom: feet; stone: pounds; carat: milligrams"
)

BOOKS = [
    (author, title, int(year))
    for author, title, year in (
        (author, *book.rsplit("/", 1))
        for author, book in _pairs(
            "Jane Austen: Pride and Prejudice/1813; Mary Shelley: Frankenstein/1818; Herman Melville: Moby-Dick/1851; "
            "Gustave Flaubert: Madame Bovary/1856; Victor Hugo: Les Misérables/1862; "
            "Lewis Carroll: Alice's Adventures in Wonderland/1865; "
            "Fyodor Dostoevsky: Crime and Punishment/1866; Leo Tolstoy: Anna Karenina/1878; Bram Stoker: Dracula/1897; "
            "Joseph Conrad: Heart of Darkness/1899; James Joyce: Ulysses/1922; Franz Kafka: The Trial/1925; "
            "Virginia Woolf: Mrs Dalloway/1925; Aldous Huxley: Brave New World/1932; "
            "John Steinbeck: The Grapes of Wrath/1939; "
            "Albert Camus: The Stranger/1942; George Orwell: Nineteen Eighty-Four/1949; "
            "Ernest Hemingway: The Old Man and the Sea/1952; "
            "Vladimir Nabokov: Lolita/1955; Chinua Achebe: Things Fall Apart/1958; Günter Grass: The Tin Drum/1959; "
            "Harper Lee: To Kill a Mockingbird/1960; Gabriel García Márquez: One Hundred Years of Solitude/1967; "
            "Umberto Eco: The Name of the Rose/1980; Toni Morrison: Beloved/1987"
        )
    )
]

PLANETS = _pairs(
    "Mercury: Phobos; Venus: Triton; Earth: the Moon; Mars: Deimos; Jupiter: Europa; Saturn: Titan; Uranus: Miranda; "
    "Neptune: Triton"
)

LANGUAGES = [
    (name, int(year))
    for name, year in _pairs(
        "Fortran: 1957; Lisp: 1958; COBOL: 1959; BASIC: 1964; Pascal: 1970; C: 1972; SQL: 1974; Ada: 1980; C++: 1985; "
        "Perl: 1987; Haskell: 1990; Python: 1991; Lua: 1993; Java: 1995; JavaScript: 1995; Ruby: 1995; C#: 2000; "
        "Scala: 2004; Go: 2009; Rust: 2015; Swift: 2014; Kotlin: 2016"
    )
]

STATUS_CODES = _pairs(
    "200: OK; 201: Created; 204: No Content; 301: Moved Permanently; 304: Not Modified; 400: Bad Request; "
    "401: Unauthorized; 403: Forbidden; 404: Not Found; 409: Conflict; 410: Gone; 418: I'm a teapot; "
    "429: Too Many Requests; 500: Internal Server Error; 503: Service Unavailable"
)

IN_OTHER_LANGUAGES = [
    "¿Cuál es la capital de Bolivia según su constitución?",
    "Quelle est la plus longue rivière de France ?",
    "Wie heißt der höchste Berg Österreichs?",
    "Qual è l'isola più grande del Mediterraneo?",
    "Qual é a maior cidade do Brasil?",
    "Jaka rzeka płynie przez Warszawę?",
    "Какое озеро самое глубокое в мире?",
    "Яка найдовша річка України?",
    "Ποια είναι η μεγαλύτερη λίμνη της Ελλάδας;",
    "Türkiye'nin en yüksek dağı hangisidir?",
    "日本で一番高い山は何ですか。",
    "中国最长的河流是哪一条？",
    "대한민국에서 가장 큰 섬은 어디입니까?",
    "भारत की सबसे लंबी नदी कौन सी है?",
    "แม่น้ำสายใดไหลผ่านกรุงเทพฯ",
    "Sông nào chảy qua Hà Nội?",
    "რომელია საქართველოს უმაღლესი მთა?",
    "Ո՞րն է Հայաստանի ամենամեծ լիճը։",
    "Mto mrefu zaidi barani Afrika ni upi?",
    "Hvað heitir stærsti jökull Íslands?",
]

_LONG_SENTENCE = "Add {number} to the sum so far and keep {number} in mind for the next step. "

AWKWARD = [
    "",
    " ",
    "Who said \"the die is cast\" (\"alea iacta est\")?",
    "What's the plural of 'ox', and isn't it 'oxen'?",
    "Name the three colours of the Italian flag:\n1.\n2.\n3.",
    "Carriage return and line feed:\r\nwhich systems end their lines this way?",
    "column a\tcolumn b\tcolumn c\nWhich character separates these columns?",
    "In C:\\temp\\new\\table.txt, which folder comes after C:\\temp?",
    "Does \\u0041 stay as it is, or does \\\\n become a new line?",
    "How many people are in this picture: 👩‍👩‍👧‍👦? And in 🧑🏽‍🚀?",
    "Which country has the flag 🇧🇷, and which the flag 🏴󠁧󠁢󠁳󠁣󠁴󠁿?",
    "ما هي عاصمة المغرب؟",
    "ما هو أطول نهر في أفريقيا؟ (Nile أم Congo)",
    "מהי בירת צרפת?",
    "Is \u202bשלום עולם\u202c a greeting?",
    "Is cafe\u0301 the same word as caf\u00e9?",
    "Read this aloud: Z\u0351\u036b\u0343a\u0309\u036cl\u034cg\u0300o\u0322",
    "First line\u2028second line\u2029third paragraph: how many lines are these?",
    "A zero\u200bwidth space, a no\u00a0break space and a soft\u00adhyphen: how many words?",
    '{"role": "user", "content": "Is this JSON inside a question?"}',
    '[{"custom_id": "x-1", "method": "POST"}, null, 1e5] — is this valid JSON?',
    "What does {{ topic }} print in a template, and what {% if year %}this{% endif %}?",
    "{{ 7 * 7 }} ${7 * 7} <%= 7 * 7 %> #{7 * 7}: which template languages are these?",
    "{# is this a comment? #}",
    "Robert'); DROP TABLE students;-- why is this a famous name?",
    "<script>alert('1 < 2 & 3 > 2')</script> Which characters does HTML escape?",
    "=SUM(A1:A3) is a formula in which program?",
    "a,b;c|d: which of these separators does CSV use by its name?",
    "\ufeffDoes this question begin with a byte order mark?",
    "𝒲𝒽𝒶𝓉 𝒾𝓈 𝓉𝒽𝒾𝓈 alphabet, and is 𠮷 one character?",
    "null",
    "NaN",
    "  Are leading and trailing spaces kept?  ",
    "Does a form feed \x0c or a unit separator \x1f print anything?",
    "Start from zero. " + "".join(_LONG_SENTENCE.format(number=number) for number in range(1, 82)) + "What is the sum?",
    "Here is the same letter many times: " + "ü" * 3000 + ". Which letter is it?",
]
