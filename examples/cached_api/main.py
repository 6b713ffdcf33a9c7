"""A cached API in one file: what is slow to compute is quick to read, and right after every write, in all processes.

REDIS_URL, or REDIS_HOST and REDIS_PORT, say where the server is; without them it is localhost:6379. The products are in
a file of SQLite's in the current directory.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from backburner import cached_response, default_cache

app = FastAPI(title="Backburner: a cached API")
log = logging.getLogger("uvicorn.error")


class Product(BaseModel):
    id: int
    name: str
    price: int


class Report(BaseModel):
    products: int
    total: int


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect("products.db")
    try:
        with connection:
            connection.execute("CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
            yield connection
    finally:
        connection.close()


def compute_report() -> Report:
    log.info("computing the report")
    time.sleep(1)  # stands for a query that takes long
    with database() as connection:
        count, total = connection.execute("SELECT count(*), coalesce(sum(price), 0) FROM products").fetchone()
    return Report(products=count, total=total)


# A response, kept as it is sent: a hit calls nothing of what is below.
@app.get("/products/{product_id}")
@cached_response(ttl="10m", tags=["product:{product_id}"], cache_status="shop")
def read_product(product_id: int) -> Product:
    with database() as connection:
        row = connection.execute("SELECT id, name, price FROM products WHERE id = ?", (product_id,)).fetchone()
    if row is None:
        raise HTTPException(404, f"There is no product {product_id}")
    return Product(id=row[0], name=row[1], price=row[2])


# A value. For a minute it is fresh; for nine more it is given while one caller computes the next one.
@app.get("/report")
async def read_report() -> Report:
    report: Report = await default_cache().tags("products").aflexible("report", ttl=(60, 600), callback=compute_report)
    return report


@app.put("/products/{product_id}")
def write_product(product_id: int, product: Product) -> Product:
    kept = product.model_copy(update={"id": product_id})
    with database() as connection:
        connection.execute("REPLACE INTO products VALUES (?, ?, ?)", (kept.id, kept.name, kept.price))
    # After the commit: from now on nobody, in any process, is given what was computed before.
    default_cache().tags(f"product:{product_id}").flush()
    default_cache().tags("products").flush()
    return kept
