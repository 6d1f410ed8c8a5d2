"""Create missing buckets of the cluster's own S3: `make_buckets.py`.

Does nothing if the cluster uses another S3.
"""

import os
import sys

import botocore.session
from botocore.exceptions import ClientError

EXISTS = ("BucketAlreadyExists", "BucketAlreadyOwnedByYou")


def main() -> None:
    """Create each bucket of `S3_BUCKETS`."""
    if os.environ.get("S3_REPLICAS") == "0":
        print("another S3 is used: nothing to create")
        return
    client = botocore.session.get_session().create_client("s3")
    for bucket in filter(None, os.environ.get("S3_BUCKETS", "demo").split(",")):
        try:
            client.create_bucket(Bucket=bucket.strip())
            print(f"{bucket}: created")
        except ClientError as error:
            if error.response["Error"]["Code"] not in EXISTS:
                sys.exit(f"{bucket}: {error}")
            print(f"{bucket}: exists")


if __name__ == "__main__":
    main()
