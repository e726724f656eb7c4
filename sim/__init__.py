"""The test quarry: virtual MCUs, buses, trucks and links; for demos and tests."""
