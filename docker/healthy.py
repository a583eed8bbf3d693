"""healthy URL: whether the server of this container answers there with 2xx: exit status 0, else 1. For HEALTHCHECK.

It asks over loopback, so the certificate of an https URL is not looked at: its name is another one.
"""

import http.client
import ssl
import sys
from urllib.parse import urlsplit


def main() -> int:
    url = urlsplit(sys.argv[1])
    if url.scheme == "https":
        unnamed = ssl._create_unverified_context()  # noqa: S323  of loopback
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            url.netloc, timeout=4, context=unnamed
        )
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=4)
    try:
        connection.request("GET", url.path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        print(f"{sys.argv[1]}: {type(error).__name__}")
        return 1
    print(f"{sys.argv[1]}: {status}")
    return 0 if 200 <= status < 300 else 1


if __name__ == "__main__":
    sys.exit(main())
