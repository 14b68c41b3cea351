"""Cases that many tests share: plain definitions of what users bring."""
