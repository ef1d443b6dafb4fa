"""Pictures of lines of text: the data recipe of training, evaluation and the held-out sets, all of it drawn from one
random.Random. A picture is 8-bit grey, HEIGHT pixels high; what a model sees of it is `ink`, computed from the picture
alone, so that every reader of the PNG computes the same."""
import json
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

HEIGHT, WIDTH, PATCH = 32, 320, 8
COLUMNS = WIDTH // PATCH
MOST_CHARACTERS = 28
TOKENS = ["<pad>", "<bos>", "<eos>", "<image>", "<ocr>"] + [chr(i) for i in range(32, 127)]
ID = {token: i for i, token in enumerate(TOKENS)}
PAD, BOS, EOS, IMAGE, OCR = range(5)

_TRUETYPE, _OPENTYPE = "/usr/share/fonts/truetype/", "/usr/share/fonts/opentype/"
# Debian: fonts-dejavu-core, fonts-liberation, fonts-roboto-unhinted, fonts-crosextra-caladea, fonts-linuxlibertine.
# The first is what training begins with.
TRAINED_FONTS = [_TRUETYPE + name for name in (
    "dejavu/DejaVuSans.ttf", "liberation/LiberationSerif-Regular.ttf", "liberation/LiberationSans-Regular.ttf",
    "dejavu/DejaVuSansMono.ttf", "dejavu/DejaVuSerif.ttf", "roboto/unhinted/RobotoTTF/Roboto-Regular.ttf",
    "crosextra/Caladea-Regular.ttf")] + [_OPENTYPE + "linux-libertine/LinLibertine_R.otf"]
# fonts-open-sans, fonts-lato, fonts-freefont-ttf: no relative of these is trained on (Noto Sans, Carlito).
UNSEEN_FONTS = [_TRUETYPE + name for name in (
    "open-sans/OpenSans-Regular.ttf", "lato/Lato-Regular.ttf", "freefont/FreeSerif.ttf")]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALPHANUMERIC = _LETTERS + _LETTERS.upper() + "0123456789 "
_ITEMS = ("Total", "Subtotal", "VAT", "Tax", "Qty", "Price", "Invoice", "Order", "Date", "Due", "Item", "No.", "Net",
          "Paid", "Amount", "Discount", "Balance", "Ref", "Page", "Unit")
_fonts = {}


def words():
    """Debian's wamerican in ASCII: (those to train on, 5,000 held out)."""
    with open("/usr/share/dict/words", encoding="utf-8") as file:
        known = [word for word in file.read().split() if word.isascii()]
    random.Random(0).shuffle(known)
    return known[5000:], known[:5000]


TRAINED_WORDS, HELD_OUT_WORDS = words()


@dataclass(frozen=True)
class Recipe:
    """What lines are drawn from. Shares of the kinds of text; the rest is dictionary words."""
    words: list
    fonts: list
    random_share: float = 0.2   # characters at random: nothing to guess from
    form_share: float = 0.2     # like a line of an invoice or of a table
    sizes: tuple = (16, 24)     # pixels
    augmented: float = 0.8      # share of pictures with grey levels, shear, blur, noise
    most_characters: int = MOST_CHARACTERS


CLEAN_WORDS = Recipe(HELD_OUT_WORDS, TRAINED_FONTS, random_share=0, form_share=0, augmented=0)
AUGMENTED_MIX = Recipe(HELD_OUT_WORDS, TRAINED_FONTS)
UNSEEN_MIX = Recipe(HELD_OUT_WORDS, UNSEEN_FONTS, augmented=0)


def _random_characters(r, length):
    if r.random() < 0.5:
        return "".join(chr(r.randrange(32, 127)) for _ in range(length))
    return "".join(r.choice(_ALPHANUMERIC) for _ in range(length))


def _amount(r):
    return f"{r.choice(['', '', '$', '-'])}{r.randrange(10 ** r.randint(1, 4))}.{r.randrange(100):02d}"


def _form(r, known):
    """An entry of an invoice or a row of a table."""
    date = f"{r.randint(1, 28):02d}{(s := r.choice('./-'))}{r.randint(1, 12):02d}{s}{r.randint(1990, 2030)}"
    return r.choice((
        lambda: f"{r.choice(_ITEMS)}: {_amount(r)}",
        lambda: f"{r.choice(_ITEMS)} #{r.randrange(10 ** 6)}",
        lambda: f"{r.choice(_ITEMS)} {date}",
        lambda: f"{r.choice(known)} {r.randint(1, 99)} x {_amount(r)}",
        lambda: f"{r.choice(known)} | {r.randrange(1000)} | {_amount(r)}",
        lambda: " ".join(str(r.randrange(10 ** r.randint(1, 4))) for _ in range(r.randint(3, 6))),
        lambda: f"{r.choice(known).capitalize()} {r.randint(1, 99)}%",
    ))()


def _sentence(r, known, length):
    text = ""
    while len(text) < length:
        kind, word = r.random(), r.choice(known)
        if kind < 0.15:
            word = str(r.randrange(10 ** r.randint(1, 6)))
        elif kind < 0.20:
            word = f"{r.randrange(1000)}{r.choice('.,:/-')}{r.randrange(100):02d}"
        elif kind < 0.40:
            word = word.capitalize()
        elif kind < 0.50:
            word = word.upper()
        elif kind < 0.55:
            opening, closing = r.choice(("()", "[]", '""', "''", "{}", "<>"))
            word = opening + word + closing
        text += word + (r.choice(".,;:!?-") if r.random() < 0.15 else "") + " "
    return text[:length]


def draw_text(r, recipe):
    length = r.randint(1, recipe.most_characters)
    kind = r.random()
    if kind < recipe.random_share:
        text = _random_characters(r, length)
    elif kind < recipe.random_share + recipe.form_share:
        text = _form(r, recipe.words)[:recipe.most_characters]
    else:
        text = _sentence(r, recipe.words, length)
    return text.strip() or "x"


def _font(path, size):
    if (path, size) not in _fonts:
        _fonts[path, size] = ImageFont.truetype(path, size)
    return _fonts[path, size]


def render(r, text, path, size, augmented):
    """(text, cut to what fits WIDTH; picture, uint8 [HEIGHT, w], w <= WIDTH)."""
    font = _font(path, size)
    while font.getlength(text) > WIDTH - 14 and len(text) > 1:
        text = text[:-1].strip()
    left = r.randint(1, 8)
    width = min(WIDTH, int(font.getlength(text)) + left + r.randint(2, 6))
    ascent, descent = font.getmetrics()
    top = (HEIGHT - ascent - descent) // 2 + r.randint(-2, 2)
    back, ink = (r.randint(200, 255), r.randint(0, 90)) if augmented else (255, 0)
    picture = Image.new("L", (width, HEIGHT), back)
    ImageDraw.Draw(picture).text((left, top), text, fill=ink, font=font)
    if augmented and r.random() < 0.5:  # skew
        shear = r.uniform(-0.12, 0.12)
        picture = picture.transform((width, HEIGHT), Image.Transform.AFFINE,
                                    (1, shear, -HEIGHT / 2 * shear, r.uniform(-0.01, 0.01), 1, 0),
                                    Image.Resampling.BILINEAR, fillcolor=back)
    if augmented and r.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(r.uniform(0.2, 0.8)))
    pixels = np.asarray(picture)
    if augmented and r.random() < 0.5:
        noise = np.random.default_rng(r.getrandbits(32)).normal(0, r.uniform(2, 12), pixels.shape)
        pixels = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return text, pixels


def draw_line(r, recipe):
    """(text, picture, the font's path)."""
    path = r.choice(recipe.fonts)
    text, pixels = render(r, draw_text(r, recipe), path, r.randint(*recipe.sizes), r.random() < recipe.augmented)
    return text, pixels, path


def ink(pixels, width=WIDTH):
    """What a model sees: f32 [HEIGHT, width], (background - pixel) / 255 at least -0.2, 0 right of the picture.
    Background is the lower median of all pixels."""
    background = int(np.partition(pixels.ravel(), (pixels.size - 1) // 2)[(pixels.size - 1) // 2])
    out = np.zeros((HEIGHT, width), np.float32)
    out[:, :pixels.shape[1]] = np.maximum((background - pixels.astype(np.int32)).astype(np.float32) / np.float32(255),
                                          np.float32(-0.2))
    return out


def processor_config():
    """processor_config.json: how a picture becomes the model's input."""
    return {"image_height": HEIGHT, "image_width": WIDTH, "patch_width": PATCH, "background": "lower median",
            "ink_minimum": -0.2, "bos": "<bos>", "image_token": "<image>", "prompt": "<ocr>", "eos": "<eos>",
            "max_new_tokens": MOST_CHARACTERS + 12}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
