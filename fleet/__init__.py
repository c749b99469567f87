"""The fleet room: signs and publishes releases, pushes them in waves, stores telemetry, tells drift from noise."""
