"""Link headers, as servers write them."""

from __future__ import annotations

import pytest

from pipeline.ingest.link_header import next_link


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("", None),
        (" , ", None),
        ("<https://a/?page=2>; rel=next", "https://a/?page=2"),
        ('<?page=2>; rel="next"', "?page=2"),
        ('<?page=1>; rel="prev", <?page=3>; rel="next"', "?page=3"),
        ('<?page=9>; rel="next last"', "?page=9"),
        ('<?page=9>; rel="last  NEXT"', "?page=9"),
        ('<?page=2>; REL="Next"', "?page=2"),
        ('<?page=2>; title="a=b; c, <d>"; rel="next"', "?page=2"),
        (r'<?page=2>; title="a \"quoted\" one"; rel="n\ext"', "?page=2"),
        ("<https://a/orders;v=2?a=1;b=2,3>; rel=next", "https://a/orders;v=2?a=1;b=2,3"),
        ('<?page=2> ; crossorigin ; rel = "next" ;', "?page=2"),
        ("<?page=2>;rel=next,<?page=9>;rel=next", "?page=2"),
        ('<?page=2>; rel="prev"; rel="next"', None),
        ("</style.css>; rel=preload; as=style", None),
        ('<?page=2>; rel="nextish"', None),
    ],
)
def test_the_next_page_is_found(header: str, target: str | None) -> None:
    assert next_link(header) == target


@pytest.mark.parametrize(
    "header",
    [
        "?page=2; rel=next",
        '<?page=2; rel="next"',
        '<?page=2>; rel="next',
        '<?page=2> rel="next"',
        '<?page=1>; rel="prev" <?page=3>; rel="next"',
    ],
)
def test_a_header_that_may_hide_a_page_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="character"):
        next_link(header)
