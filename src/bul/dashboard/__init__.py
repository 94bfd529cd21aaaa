"""The live page of a region. Open `page.py` first; `index.html` is the page itself."""
