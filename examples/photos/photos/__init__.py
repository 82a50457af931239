"""Photos become thumbnails while the page answers at once: an example of an application on `proj`."""
