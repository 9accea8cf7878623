"""Where weights come from: pipelines, LoRAs, devices, precision."""
