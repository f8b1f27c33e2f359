"""Where bytes wait: the frame arena's owner, who decides what to fetch, checks it, and shares it out."""
