"""Makes the buckets of the cluster's own S3, unless they are there: `make_buckets.py`.

Where a user brings an S3, there is nothing to make.
"""

import os
import sys

import botocore.session
from botocore.exceptions import ClientError

THERE = ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")


def main() -> None:
    """Make each bucket of `S3_BUCKETS`."""
    if os.environ.get("S3_REPLICAS") == "0":
        print("the user's own S3: nothing to make")
        return
    client = botocore.session.get_session().create_client("s3")
    for bucket in filter(None, os.environ.get("S3_BUCKETS", "demo").split(",")):
        try:
            client.create_bucket(Bucket=bucket.strip())
            print(f"{bucket}: made")
        except ClientError as error:
            if error.response["Error"]["Code"] not in THERE:
                sys.exit(f"{bucket}: {error}")
            print(f"{bucket}: is there")


if __name__ == "__main__":
    main()
