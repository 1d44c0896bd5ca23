"""What is installed, what this machine can run, and what a pair needs: `ssd doctor`. Nothing is downloaded here."""
