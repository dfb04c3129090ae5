'''Crawl a site, politely, with a pool that fetches and parses.

    python crawl.py [URL]

Without a URL it crawls the documentation of Python's standard library, which it serves itself. The command
`looppool demo` does the same and has options; `looppool/crawl.py` shows how it is done.
'''

import asyncio
import sys
from contextlib import AsyncExitStack

from looppool import docsite
from looppool.crawl import Crawl, Report


def show(report: Report) -> None:
    if report.visited % 10 == 0:
        print(f'{report.visited} pages, {report.known} known', file=sys.stderr)


async def main(url: str | None) -> None:
    async with AsyncExitStack() as stack:
        if url is None:
            url = await stack.enter_async_context(docsite.serve())
        report = await Crawl(url, pages=30, concurrency=4, on_change=show).run()
    for page in sorted(report.pages, key=lambda page: page.words, reverse=True)[:10]:
        print(f'{page.words:7,} words  {page.title}')
    print(f'{len(report.pages)} pages, {len(report.errors)} errors, {report.rate:.0f} pages a second')


asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
