"""What is wrong with a built site: links and anchors that lead nowhere, other hosts, pages without a way on,
formulas that were not understood, equations that have no place.

Reads the HTML files alone. An <a> may leave the site; what a browser loads by itself (scripts, styles, fonts,
pictures) may not.
"""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src",
          "object": "data", "use": "href"}
NO_WORDS = {"pre", "code", "math", "script", "style", "title"}
# Of a formula (not $NAME, nor $0), a command of LaTeX, and --flag whose dashes were made one.
SIGNS = re.compile(r"\$(?![A-Z0-9])|\\[a-z]{2,}|(?<!\S)–(?=[a-z])")
TAG = re.compile(r"\(([A-Z]{2}\.\d+)\)")


class Page(HTMLParser):
    """The ids of a page, what it links to, what it loads, its words without code and formulas, its tags."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.way_on = set(), [], [], False
        self.inside, self.words, self.tags = [], [], set(TAG.findall(text))
        self.feed(text)

    def handle_data(self, data):
        self.words += [] if self.inside else [data]

    def handle_endtag(self, tag):
        if tag in self.inside:
            del self.inside[self.inside.index(tag):]

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.inside += [tag] if tag in NO_WORDS else []
        self.ids.update(attrs[k] for k in ("id", "name") if attrs.get(k))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag in LOADED and attrs.get(LOADED[tag]):
            self.loads.append(attrs[LOADED[tag]])
        if tag == "a" and {"next-page", "prev-page"} & set((attrs.get("class") or "").split()):
            self.way_on = True


@cache
def read(path):
    return Page(path.read_text(encoding="utf-8"))


def pages(site):
    return sorted(p for p in site.rglob("*.html") if "_static" not in p.parts)


def leads_nowhere(site):
    """(page, link) for each address in the site that is not there, and each anchor that its page lacks."""
    site, bad = Path(site).resolve(), []
    for path in pages(site):
        page = read(path)
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            fragment = unquote(parts.fragment)
            missing = not target.is_file() or (fragment and target.suffix == ".html" and (
                fragment not in read(target).ids))
            if missing or not target.is_relative_to(site):
                bad.append((path.relative_to(site).as_posix(), link))
    return bad


def asks_others(site):
    """(file, address) of what a browser would load from another host, in pages, styles and our scripts."""
    site = Path(site).resolve()
    bad = [(p.relative_to(site).as_posix(), load) for p in pages(site) for load in read(p).loads
           if re.match(r"(?:\w+:)?//", load)]
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]+)", path.read_text("utf-8"))
        bad += [(path.relative_to(site).as_posix(), address) for address in found]
    return bad


def without_a_way_on(site, alone=("genindex.html", "py-modindex.html", "search.html")):
    """Pages with neither a next one nor a previous one. The indices have the contents beside them; a file to
    be taken along (_downloads) is no page of the site."""
    site = Path(site).resolve()
    return [p.relative_to(site).as_posix() for p in pages(site)
            if p.name not in alone and "_downloads" not in p.parts and not read(p).way_on]


def not_understood(site):
    """(page, words around it) of what should have become a formula or stayed a flag, outside of code."""
    site, found = Path(site).resolve(), []
    for path in pages(site):
        words = " ".join("".join(read(path).words).split())
        found += [(path.relative_to(site).as_posix(), words[max(0, m.start() - 20):m.end() + 20])
                  for m in SIGNS.finditer(words)]
    return found


def without_a_place(site):
    """Tags of equations that some page mentions, (RN.3), of which no page has the anchor."""
    site = Path(site).resolve()
    ids = {i for path in pages(site) for i in read(path).ids}
    return sorted({tag for path in pages(site) for tag in read(path).tags} - ids)
