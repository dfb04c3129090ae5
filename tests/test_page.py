'''Pages are read as a browser would read them, and each URL has one spelling.'''

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tornado.httputil import HTTPHeaders

from looppool.page import MAX_TITLE, Page, PageParser, normalise, read_page, site_of, text_of

URL = 'http://example.org/guide/index.html'


def read(html: str | bytes, content_type: str = 'text/html', status: int = 200, **headers: str) -> Page:
    body = html.encode() if isinstance(html, str) else html
    return read_page(URL, status, 'Reason', HTTPHeaders({'Content-Type': content_type} | headers), body)


@pytest.mark.parametrize(
    ('link', 'url'),
    [
        ('more.html', 'http://example.org/guide/more.html'),
        ('../a/./b/../c', 'http://example.org/a/c'),
        ('/', 'http://example.org/'),
        ('http:///path', 'http://example.org/path'),
        ('//EXAMPLE.org', 'http://example.org/'),
        ('#part', URL),
        ('', URL),
        ('?q=1&r=2#part', URL + '?q=1&r=2'),
        ('HTTP://Example.ORG:80/A', 'http://example.org/A'),
        ('https://example.org:443/', 'https://example.org/'),
        ('https://example.org:80/', 'https://example.org:80/'),
        ('http://user:secret@example.org/', 'http://example.org/'),
        ('http://[::1]:8000/x', 'http://[::1]:8000/x'),
        ('http://bücher.example/ü?q=ü', 'http://xn--bcher-kva.example/%C3%BC?q=%C3%BC'),
        ('a b', 'http://example.org/guide/a%20b'),
        ('a%20b%2Fc', 'http://example.org/guide/a%20b%2Fc'),
        ('  more.html\n', 'http://example.org/guide/more.html'),
        ('mailto:somebody@example.org', None),
        ('javascript:void(0)', None),
        ('file:///etc/passwd', None),
        ('data:text/html,x', None),
        ('http://[bad', None),
        ('http://example.org:port/', None),
        ('http://example.org:99999/', None),
        ('http://a..b/', None),
        (f'http://{"a" * 64}.example/', None),
    ],
)
def test_normalise(link: str, url: str | None) -> None:
    assert normalise(link, URL) == url


@pytest.mark.parametrize('text', ['', 'example.org', 'example.org:80', '/path', 'ftp://example.org/', 'http://', 'http:///a'])
def test_no_url(text: str) -> None:
    assert normalise(text) is None


@given(st.text(max_size=40), st.sampled_from(['', URL, 'https://example.org:8443']))
def test_normalise_any_text(link: str, base: str) -> None:
    url = normalise(link, base)
    if url is not None:
        assert url.isascii() and url.isprintable() and ' ' not in url and '#' not in url
        assert normalise(url) == url


def test_site() -> None:
    assert site_of('http://example.org/a?b') == 'example.org' == site_of('https://example.org/')
    assert site_of('http://example.org:8080/') == 'example.org:8080'


def test_page_is_read() -> None:
    page = read(
        '''<!doctype html><html><head><title> A
        title &amp; more</title><style>no { words }</style><script>var no = "<a href='no'>words</a>"</script></head>
        <body>Five <b>words</b> are in here.<a href="b.html#x">B</a> <a href=b.html>B again</a>
        <a name="anchor">none</a> <map><area href="/c"></map> <a rel="external NoFollow" href="d">D</a>
        <a href="mailto:x@example.org">mail</a> <link href="style.css"> <img src="picture.png"></body></html>'''
    )
    assert page.title == 'A title & more'
    assert page.links == ('http://example.org/guide/b.html', 'http://example.org/c')
    assert page.words == 5 + len(['B', 'B', 'again', 'none', 'D', 'mail'])
    assert (page.url, page.status, page.error, page.redirect) == (URL, 200, '', False)
    assert page.size > 300
    assert pickle.loads(pickle.dumps(page)) == page


def test_base_holds_for_the_whole_page() -> None:
    page = read('<a href="a">1</a><base href="/other/"><base href="/ignored/"><a href="b">2</a>')
    assert page.links == ('http://example.org/other/a', 'http://example.org/other/b')


@pytest.mark.parametrize('content', ['nofollow', 'noindex, NoFollow', 'none'])
def test_robots_of_the_page(content: str) -> None:
    assert read(f'<a href="a">1</a><meta name="Robots" content="{content}"><a href="b">2</a>').links == ()


def test_robots_of_the_page_may_allow() -> None:
    assert len(read('<meta name="robots" content="noindex, follow"><a href="a">1</a>').links) == 1


@pytest.mark.parametrize(
    'html',
    ['', '<', '<a', '<a href=', '<title>open', '<script>open', '</p></p>', '<a href>', '<![if x]>', '<!-- open'],
)
def test_broken_html(html: str) -> None:
    assert read(html).error == ''


@given(st.text(alphabet='<>/!-[]"\'= aphrefbscit&;#x\n', max_size=60))
def test_any_text(text: str) -> None:
    parser = PageParser()
    try:
        parser.feed(text)
        parser.close()
    except AssertionError:
        return  # html.parser says so for unknown <![sections]]>; the crawl counts such a page as an error
    assert all(normalise(link) == link for link in parser.links(URL))


def test_long_title_is_cut() -> None:
    assert len(read(f'<title>{"long " * 1000}</title>').title) == MAX_TITLE


def test_redirect() -> None:
    page = read('', status=301, Location='../new')
    assert page.redirect and page.links == ('http://example.org/new',) and not page.error


@pytest.mark.parametrize('headers', [{}, {'Location': ''}, {'Location': 'mailto:x@example.org'}])
def test_redirect_to_nowhere(headers: dict[str, str]) -> None:
    page = read('', status=302, **headers)
    assert page.error == 'redirect to nowhere' and not page.redirect


def test_error_status() -> None:
    page = read('<a href="a">not followed</a>', status=404)
    assert page.error == '404 Reason' and page.links == () and not page.redirect


def test_other_content_is_not_parsed() -> None:
    page = read('<a href="a">text</a>', content_type='application/pdf')
    assert (page.links, page.words, page.error) == ((), 0, '')
    assert read('<a href="a">text</a>', content_type='Application/XHTML+xml; charset=utf-8').words == 1


@pytest.mark.parametrize(
    ('body', 'content_type', 'text'),
    [
        ('ä'.encode(), 'text/html', 'ä'),
        ('ä'.encode('latin-1'), 'text/html; charset="ISO-8859-1"', 'ä'),
        (b'<meta charset=latin-1>\xe4', 'text/html', '<meta charset=latin-1>ä'),
        ('ä'.encode(), 'text/html; charset=no-such', 'ä'),
        ('ä'.encode(), 'text/html; charset=hex', 'ä'),
        (b'\xff', 'text/html', '\ufffd'),
    ],
)
def test_encoding(body: bytes, content_type: str, text: str) -> None:
    assert text_of(body, content_type) == text
