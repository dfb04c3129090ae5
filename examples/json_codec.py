'''JSON instead of pickle for tasks and results, and a type that pickle does not know in a call.

What is put and what comes back are dataclasses; the codec writes them as JSON that says their type, so every message
can be read, and one that has no such type is refused where it is put. Functions and their arguments are pickled as
ever: there, a registered type says how it travels.
'''

import asyncio
import dataclasses
import json
import operator
import struct
from typing import Any

import looppool


@dataclasses.dataclass(frozen=True)
class Order:
    item: str
    amount: int


@dataclasses.dataclass(frozen=True)
class Invoice:
    order: Order
    cents: int


TYPES = {cls.__name__: cls for cls in (Order, Invoice)}
PRICES = {'tea': 350, 'cup': 1200}
RECORD = struct.Struct('<HI')  # pickle refuses it


class JsonCodec(looppool.Codec):
    def encode(self, obj: Any) -> bytes:
        return json.dumps(obj, default=_plain).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data, object_hook=_typed)


def _plain(obj: Any) -> dict[str, Any]:
    if type(obj).__name__ not in TYPES:
        raise TypeError(f'{obj!r} is nothing to be put')
    return {'type': type(obj).__name__, **vars(obj)}


def _typed(fields: dict[str, Any]) -> Any:
    return TYPES[fields.pop('type')](**fields) if 'type' in fields else fields


class Cashier(looppool.Worker[Order, Invoice]):
    @looppool.task_done
    def _process_message(self, order: Order) -> None:
        self._put_nowait(Invoice(order, order.amount * PRICES[order.item]))


async def main() -> None:
    codec = JsonCodec()
    codec.register(struct.Struct, operator.attrgetter('format'), struct.Struct)
    print(codec.encode(Order('tea', 2)).decode())

    async with looppool.Pool(pool_size=1, worker_class=Cashier, codec=codec) as pool:
        await pool.put(Order('tea', 2))
        print(await anext(pool.results()))
        try:
            await pool.put({'tea'})  # type: ignore[arg-type]
        except TypeError as error:
            print(error)

        print(await pool.call(RECORD.unpack, bytes([1, 0, 2, 0, 0, 0])))


asyncio.run(main())
