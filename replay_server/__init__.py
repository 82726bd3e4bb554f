"""The replay service: shards that keep steps once and serve prioritized windows over them."""
