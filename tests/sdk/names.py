"""Patients' names as modalities of the world write them: character set and decoded text."""

from __future__ import annotations

from typing import Any

NAMES: dict[str, tuple[Any, str]] = {
    "ascii": ("", "Doe^Jane"),
    "latin-1": ("ISO_IR 100", "Müller^Jérôme"),
    "latin-2": ("ISO_IR 101", "Dvořák^Antonín"),
    "cyrillic": ("ISO_IR 144", "Люкceмбypг^Анна"),
    "greek": ("ISO_IR 126", "Διονυσιος^Άννα"),
    "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "half-width": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "gb18030": ("GB18030", "Wang^XiaoDong=王^小东="),
    "gbk": ("GBK", "Wang^XiaoDong=王^小东="),
    "wide space": ("ISO_IR 192", "Yamada Tarou=山田\u3000太郎=やまだ\u3000たろう"),
    "utf-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東="),
    "hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "arabic": ("ISO_IR 127", "قباني^لنزار"),
    "thai": ("ISO_IR 166", "ทดสอบ^ชื่อ"),
}
