"""Draw the pictures of the READMEs and the site: `python docs/draw.py` writes `docs/assets/*.svg`.

One geometry serves both languages; only the words differ. Each picture has a light ground of its
own, so that it can be read on a dark page too.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).parent / "assets"

INK, SOFT, LINE, GROUND = "#1f2328", "#59636e", "#d0d7de", "#f6f8fa"
GOOD, BAD, DOWN, BOX = "#1a7f37", "#cf222e", "#e6e9ed", "#ffffff"
BLUE = "#0969da"
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans CJK SC', 'Microsoft YaHei', sans-serif"

Words = dict[str, str]

RESTART: dict[str, Words] = {
    "en": {
        "title": "A restart in the middle of ten events",
        "without": "Without",
        "with": "With qqbot_session",
        "down": "the process is down",
        "identify": "Identify",
        "resume": "Resume",
        "lost": "4 events lost, 1 session start spent",
        "kept": "0 events lost, 0 session starts spent",
        "again": "replayed by the gateway",
    },
    "zh": {
        "title": "收到十个事件，中途重启一次",
        "without": "不用 qqbot_session",
        "with": "用 qqbot_session",
        "down": "进程停机",
        "identify": "Identify（鉴权）",
        "resume": "Resume（恢复）",
        "lost": "丢失 4 个事件，消耗 1 次会话创建",
        "kept": "丢失 0 个事件，消耗 0 次会话创建",
        "again": "网关补发",
    },
}

FLOW: dict[str, Words] = {
    "en": {
        "title": "The way of an event, and of what is kept of it",
        "connection": "Connection|what it means",
        "handler": "your handler|runs, and ends",
        "mark": "watermark|up to here, all handled",
        "store": "AsyncSessionStore|newest state, in memory",
        "task": "one task per account|coalesces a second",
        "batch": "one batch|written off the loop",
        "storage": "files · SQLite · Redis",
        "restart": "after a restart: load, then Resume from the mark",
    },
    "zh": {
        "title": "一个事件的流转，以及留下的记录",
        "connection": "Connection|解析帧的含义",
        "handler": "你的处理函数|运行，直到结束",
        "mark": "水位线|到此为止都已处理完",
        "store": "AsyncSessionStore|内存中的最新状态",
        "task": "每个账号一个任务|合并一秒内的更新",
        "batch": "成批写入|不阻塞事件循环",
        "storage": "文件 · SQLite · Redis",
        "restart": "重启后：先 load，再从水位线 Resume",
    },
}


def text(x: float, y: float, words: str, **style: object) -> str:
    given = {"fill": INK, "font-size": 14, **{k.replace("_", "-"): v for k, v in style.items()}}
    attributes = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f'<text x="{x}" y="{y}" {attributes}>{escape(words)}</text>'


def picture(width: int, height: int, title: str, parts: list[str]) -> str:
    body = "\n".join(parts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" role="img" aria-label="{escape(title)}" font-family="{FONT}">
<title>{escape(title)}</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" \
orient="auto"><path d="M0 0 8 4 0 8z" fill="{SOFT}"/></marker></defs>
<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="{GROUND}" \
stroke="{LINE}"/>
{body}
</svg>
"""


def lane(y: int, words: Words, *, kept: bool) -> list[str]:
    """Draw ten events on a line; the process is away for the fifth to the eighth."""
    left, step = 218, 51
    away, back = left + 3.5 * step, left + 7.5 * step
    parts = [
        text(24, y + 5, words["with" if kept else "without"], font_weight=600, font_size=15),
        f'<rect x="{away}" y="{y - 26}" width="{back - away}" height="52" fill="{DOWN}" rx="4"/>',
        text((away + back) / 2, y - 34, words["down"], fill=SOFT, text_anchor="middle"),
        f'<path d="M{left - 20} {y}H{left + 9 * step + 24}" stroke="{LINE}" stroke-width="2"/>',
        f'<path d="M{back} {y - 26}V{y + 26}" stroke="{BLUE}" stroke-width="2"/>',
        text(back + 4, y - 34, words["resume" if kept else "identify"], fill=BLUE, font_weight=600),
    ]
    for number in range(10):
        x = left + number * step
        missed = 4 <= number < 8
        lost = missed and not kept
        ground, ink = (GROUND, BAD) if lost else (GOOD, "#ffffff")
        parts.append(
            f'<circle cx="{x}" cy="{y}" r="13" fill="{ground}" '
            f'stroke="{BAD if lost else GOOD}" stroke-width="1.5"/>'
        )
        parts.append(text(x, y + 5, str(number + 1), fill=ink, text_anchor="middle", font_size=13))
        if lost:
            parts.append(f'<path d="M{x - 14} {y + 14}L{x + 14} {y - 14}" stroke="{BAD}"/>')
    if kept:
        start, end = left + 4 * step, back + 18
        parts.append(
            f'<path d="M{start} {y + 32}C{start + 60} {y + 48},{end - 40} {y + 48},{end} {y + 20}" '
            f'fill="none" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
        parts.append(text(left + 5.1 * step, y + 60, words["again"], fill=SOFT, font_size=13))
    colour = GOOD if kept else BAD
    outcome = words["kept" if kept else "lost"]
    parts.append(text(24, y + 60 if kept else y + 50, outcome, fill=colour, font_weight=600))
    return parts


def restart(words: Words) -> str:
    lanes = lane(88, words, kept=False) + lane(212, words, kept=True)
    return picture(740, 296, words["title"], [text(24, 32, words["title"], fill=SOFT), *lanes])


def box(x: int, y: int, words: str, *, width: int = 184, colour: str = LINE) -> list[str]:
    name, _, what = words.partition("|")
    middle = x + width / 2
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="52" rx="6" fill="{BOX}" '
        f'stroke="{colour}" stroke-width="1.5"/>',
        text(middle, y + (22 if what else 31), name, font_weight=600, text_anchor="middle"),
    ]
    if what:
        parts.append(text(middle, y + 41, what, fill=SOFT, text_anchor="middle", font_size=12.5))
    return parts


def arrow(path: str) -> str:
    return (
        f'<path d="{path}" fill="none" stroke="{SOFT}" stroke-width="1.5" marker-end="url(#tip)"/>'
    )


def flow(words: Words) -> str:
    """Draw two rows: an event from the left to the right, and its trace back to the left."""
    columns, top, bottom = (24, 244, 464), 56, 164
    parts = [text(24, 32, words["title"], fill=SOFT)]
    for x, name in zip(columns, ("connection", "handler", "mark"), strict=True):
        parts += box(x, top, words[name], colour=BLUE)
    for x, name in zip(columns, ("batch", "task", "store"), strict=True):
        parts += box(x, bottom, words[name], colour=GOOD)
    parts += [
        arrow(f"M208 {top + 26}H240"),
        arrow(f"M428 {top + 26}H460"),
        arrow(f"M556 {top + 52}V{bottom - 4}"),
        arrow(f"M464 {bottom + 26}H432"),
        arrow(f"M244 {bottom + 26}H212"),
        arrow(f"M116 {bottom + 52}V{bottom + 80}"),
        *box(24, bottom + 84, words["storage"], colour=INK),
        arrow(f"M208 {bottom + 110}H556V{bottom + 56}"),
        text(226, bottom + 102, words["restart"], fill=SOFT, font_size=13),
    ]
    return picture(672, 324, words["title"], parts)


def main() -> None:
    for name, draw, languages in (("restart", restart, RESTART), ("flow", flow, FLOW)):
        for language, words in languages.items():
            (ASSETS / f"{name}.{language}.svg").write_text(draw(words), encoding="utf-8")


if __name__ == "__main__":
    main()
