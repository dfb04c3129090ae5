'''What is on a page: the title, the links and the words of one HTTP response, and one spelling for every URL.

Nothing here does I/O. A page may hold any bytes: what a browser would show is read, the rest is passed over.
'''

import re
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Final
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from tornado.httputil import HTTPHeaders

__all__ = ['MAX_TITLE', 'REDIRECTS', 'Page', 'PageParser', 'normalise', 'read_page', 'site_of', 'text_of']

MAX_TITLE: Final = 200  # characters
REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))

_PORTS: Final = {'http': 80, 'https': 443}
_HTML_TYPES: Final = frozenset(('text/html', 'application/xhtml+xml'))
_CHARSET: Final = re.compile(r'charset\s*=\s*["\']?([\w.:-]+)', re.IGNORECASE)
_SAFE: Final = "/%:@!$&'()*+,;=~"  # may stand in a path as they are; everything else is percent-encoded


def normalise(link: str, base: str = '') -> str | None:
    '''One spelling for every URL of a page: absolute, without fragment, user or default port.

    :param link: a URL, relative to ``base`` or absolute.
    :returns: the URL, or ``None`` if it isn't one that can be fetched over HTTP.
    '''
    try:
        parts = urlsplit(urljoin(base, link.strip()))
        host, port = _ascii_host(parts.hostname or ''), parts.port
    except ValueError:  # urllib and IDNA say so for hosts and ports that can't be
        return None
    if parts.scheme not in _PORTS or not host:
        return None
    netloc = host if port in (None, _PORTS[parts.scheme]) else f'{host}:{port}'
    path, query = quote(parts.path or '/', safe=_SAFE), quote(parts.query, safe=_SAFE + '?')
    return urlunsplit((parts.scheme, netloc, path, query, ''))


def _ascii_host(host: str) -> str:
    return f'[{host}]' if ':' in host else host.encode('idna').decode()


def site_of(url: str) -> str:
    '''The site that a normalised URL belongs to: its host, and the port if it isn't the default one.'''
    return urlsplit(url).netloc


@dataclass(frozen=True, slots=True)
class Page:
    '''What was found at one URL.

    :ivar status: the HTTP status, or 0 if there was no answer.
    :ivar title: at most `MAX_TITLE` characters.
    :ivar links: normalised URLs, each once, in the order found; of a redirect: its target.
    :ivar words: of the text that a reader sees.
    :ivar size: bytes, unpacked.
    :ivar error: why it could not be read, or ``''``.
    '''

    url: str
    status: int = 0
    title: str = ''
    links: tuple[str, ...] = ()
    words: int = 0
    size: int = 0
    error: str = ''

    @property
    def redirect(self) -> bool:
        return self.status in REDIRECTS and not self.error


def read_page(url: str, status: int, reason: str, headers: HTTPHeaders, body: bytes) -> Page:
    '''Read a response. Only HTML is parsed; anything else is a page without title, links and words.'''
    if status in REDIRECTS:
        location = headers.get('Location', '')
        target = normalise(location, url) if location else None
        return Page(url, status, links=(target,)) if target else Page(url, status, error='redirect to nowhere')
    if status >= 300:
        return Page(url, status, error=f'{status} {reason}')
    content_type = headers.get('Content-Type', '')
    if content_type.partition(';')[0].strip().lower() not in _HTML_TYPES:
        return Page(url, status, size=len(body))
    parser = PageParser()
    parser.feed(text_of(body, content_type))
    parser.close()
    return Page(url, status, parser.title, parser.links(url), parser.words, len(body))


def text_of(body: bytes, content_type: str) -> str:
    '''The text of a page, in the encoding that its header or its first kilobyte names, else UTF-8.'''
    named = _CHARSET.search(f'{content_type} {body[:1024].decode("latin-1")}')
    try:
        return body.decode(named[1] if named else 'utf-8', 'replace')
    except LookupError:
        return body.decode('utf-8', 'replace')


class PageParser(HTMLParser):
    '''Title, links and number of words of one HTML page; it takes whatever a browser would.'''

    def __init__(self) -> None:
        super().__init__()
        self.title = ''
        self.words = 0
        self._links: list[str] = []
        self._base = ''
        self._follow = True
        self._inside = ''  # the element whose text isn't text of the page: title, script or style

    def links(self, url: str) -> tuple[str, ...]:
        '''The links of the page at ``url``, normalised, each once.'''
        base = urljoin(url, self._base)
        found = (normalise(link, base) for link in self._links if self._follow)
        return tuple(dict.fromkeys(link for link in found if link))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or '' for name, value in attrs}
        match tag:
            case 'title' | 'script' | 'style':
                self._inside = tag
            case 'a' | 'area' if 'href' in given and 'nofollow' not in given.get('rel', '').lower():
                self._links.append(given['href'])
            case 'base':
                self._base = self._base or given.get('href', '')
            case 'meta' if given.get('name', '').lower() == 'robots':
                self._follow = self._follow and not {'nofollow', 'none'} & _terms(given.get('content', ''))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ''
            self.title = ' '.join(self.title.split())[:MAX_TITLE]

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words += len(data.split())
        elif self._inside == 'title':
            self.title += data


def _terms(content: str) -> set[str]:
    return {term.strip() for term in content.lower().split(',')}
