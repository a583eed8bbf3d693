"""The companion's page in a browser: `asking` is its consent and its opener, `sessions` says who may use it, `app` serves it."""
