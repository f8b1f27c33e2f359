"""What `imap` does when: probing, choosing workers, cutting chunks, handing results on."""
