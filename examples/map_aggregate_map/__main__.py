"""Map, aggregate, map: sales of shops, sales of days, then a model per product.

Each object in S3 has the sales of one shop, so no chunk has all sales of a product. The transform
makes sums of a chunk, `reduce` adds them up, and `then` calls a function once per product, with all
of its days, on the workers. Each of the three is recorded, and resumes where it was after a crash.

    chunkmap up
    python -m examples.map_aggregate_map
"""

import io
from datetime import date
from pathlib import Path

import polars as pl

from examples.commands import chunkmap
from pipeline import scan_output
from pipeline.storage import own_storage

HERE = Path(__file__).parent
SHOPS, DAYS, PRODUCTS = 8, 60, 40


def sales_of(shop: int) -> pl.DataFrame:
    """Sales of a shop: product `p07` sells about 7 a day, and a tenth more each day."""
    numbers = pl.DataFrame({"number": range(PRODUCTS)})
    days = pl.DataFrame({"after": range(DAYS)})
    number, after = pl.col("number"), pl.col("after")
    return numbers.join(days, how="cross").select(
        product=pl.format("p{}", number.cast(pl.String).str.zfill(2)),
        day=pl.lit(date(2024, 1, 1)) + pl.duration(days=after),
        count=number + number * after // 10 + (number * 31 + after * 7 + shop) % 3,
    )


def main() -> None:
    """Store the sales, and run the job."""
    for shop in range(SHOPS):
        data = io.BytesIO()
        sales_of(shop).write_parquet(data)
        own_storage().put(f"s3://demo/examples/sales/{shop}.parquet", data.getvalue())
    chunkmap("run", HERE / "job.yaml")
    forecasts = scan_output("s3://demo/examples/forecasts/").sort("expected", descending=True)
    print(forecasts.head(5).collect())


if __name__ == "__main__":
    main()
