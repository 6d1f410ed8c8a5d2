"""Enrich each row: the revenue of each line item.

The simplest kind of transform. Three recommendations:

* **Select what you keep.** chunkmap reads only the columns that the plan of the LazyFrame needs:
  this one reads 7 of lineitem's 16, and the comments, its largest column, stay in S3.
* **Stay lazy.** Do not call `collect()`: return the LazyFrame, which Polars runs in one pass.
* **Mind the scale of decimals.** Polars gives a product the larger scale of its two factors and
  rounds to it, so 2 digits times 2 digits loses the last two. Widen one factor first.
"""

import polars as pl

MONEY = pl.Decimal(15, 2)
"""Type of money and rates in TPC-H; floats of other sources are rounded to it."""


def revenue(lf: pl.LazyFrame, *, currency: str = "EUR") -> pl.LazyFrame:
    """Add the net revenue and the charge with tax of each line item, both exact.

    Args:
        lf: TPC-H lineitem, or any frame with its keys, price, discount and tax.
        currency: The ISO 4217 code of the amounts; written to every row, not converted.

    Returns:
        One row per input row, in order: `l_orderkey`, `l_linenumber`, `l_suppkey`, `l_shipdate`,
        `revenue` (price less discount, 4 decimals), `charge` (with tax, 6 decimals), `currency`.

    Raises:
        ValueError: `currency` is not three capital letters.
    """
    if not (len(currency) == 3 and currency.isascii() and currency.isupper()):
        raise ValueError(f"currency {currency!r} is not an ISO 4217 code such as 'EUR'")
    # Six decimals hold price x (1 - discount) x (1 + tax) without rounding: two per factor.
    price = pl.col("l_extendedprice").cast(MONEY).cast(pl.Decimal(38, 6))
    net = price * (1 - pl.col("l_discount").cast(MONEY))
    charge = net * (1 + pl.col("l_tax").cast(MONEY))
    return lf.select(
        "l_orderkey",
        "l_linenumber",
        "l_suppkey",
        "l_shipdate",
        revenue=net.cast(pl.Decimal(18, 4)),
        charge=charge.cast(pl.Decimal(20, 6)),
        currency=pl.lit(currency),
    )
