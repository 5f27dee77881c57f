"""The pages that a study, a ladder or A/A studies write while they run."""


def recorded_pages(monkeypatch, page):
    """Record every page that is written, with its moment."""
    seen, write = [], page.write_page

    def written(*values):
        path = write(*values)
        seen.append((values[-1], path.read_text()))
        return path

    monkeypatch.setattr(page, "write_page", written)
    monkeypatch.setattr("nonlin.report.live._SECONDS", 0.5)
    return seen
