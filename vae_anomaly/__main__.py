"""``python -m vae_anomaly``, for where the console script is not on the path."""

from vae_anomaly.cli import main

if __name__ == "__main__":
    main()
