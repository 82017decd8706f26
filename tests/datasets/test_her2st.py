import gzip
import hashlib
import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gdml
from gdml.datasets._fetch import git_blob_hash, read_blobs


def blob_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def section_files(name, genes):
    spots = [(x, y) for x in range(3) for y in range(3)]
    values = np.random.default_rng(0).poisson(3, (9, len(genes)))
    table = "\t" + "\t".join(genes) + "\n"
    table += "".join(f"{x}x{y}\t" + "\t".join(map(str, v)) + "\n" for (x, y), v in zip(spots, values, strict=True))
    positions = "x\ty\tpixel_x\tpixel_y\tselected\n" + "".join(f"{x}\t{y}\t{x * 20}\t{y * 20}\t1\n" for x, y in spots)
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(image, "JPEG")
    return {
        f"ST-cnts/{name}.tsv.gz": gzip.compress(table.encode(), mtime=0),
        f"ST-spotfiles/{name}_selection.tsv": positions.encode(),
        f"ST-imgs/{name[0]}/{name}/he.jpg": image.getvalue(),
    }


@pytest.fixture
def upstream(monkeypatch):
    """A server of two small sections; ``fault`` says what goes wrong with the counts of Y1."""
    files = section_files("Y1", ["A", "B"]) | section_files("Z2", ["B", "C"])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            content = files.get(self.path.removeprefix("/data/"))
            bad = self.path.endswith("Y1.tsv.gz") and server.fault
            if content is None or bad == "absent":
                return self.send_error(404)
            self.send_response(200)
            if bad != "cut without length":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if bad == "corrupt":
                content = content[:-1] + bytes([content[-1] ^ 1])
            self.wfile.write(content[: len(content) // 2] if bad and bad.startswith("cut") else content)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.fault = [], None
    server.url = f"http://127.0.0.1:{server.server_port}/data"
    monkeypatch.setattr(
        "gdml.datasets._her2st.read_blobs", lambda name: {path: blob_hash(c) for path, c in files.items()}
    )
    monkeypatch.delenv("GDML_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def kept(folder):
    """Files in the folder, without the marker."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != "gdml.json")


def test_download_then_no_second_download(upstream, tmp_path):
    adata = gdml.datasets.her2st(["Z2", "Y1"], cache_dir=tmp_path, base_url=upstream.url)
    assert len(upstream.asked) == 6
    assert len(kept(tmp_path)) == 6
    again = gdml.datasets.her2st(["Z2", "Y1"], cache_dir=tmp_path, base_url=upstream.url)
    assert len(upstream.asked) == 6
    np.testing.assert_array_equal(adata.X.toarray(), again.X.toarray())


def test_sections_below_each_other(upstream, tmp_path):
    adata = gdml.datasets.her2st(["Z2", "Y1"], cache_dir=tmp_path, base_url=upstream.url)
    assert adata.shape == (18, 3)
    assert list(adata.obs["library_id"].unique()) == ["Z2", "Y1"]
    assert list(adata.obs["patient"].unique()) == ["Z", "Y"]
    assert (adata.obs.dtypes[["library_id", "patient"]] == "category").all()
    assert adata.obs_names[0] == "0x0-Z2"
    assert set(adata.uns["spatial"]) == {"Y1", "Z2"}
    # not detected in a section: absent from its table, 0 here
    assert adata[adata.obs["library_id"] == "Y1", "C"].X.sum() == 0
    assert adata[adata.obs["library_id"] == "Z2", "C"].X.sum() > 0
    assert adata.X.dtype == np.float32


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("corrupt", ValueError, "corrupt.*Nothing was kept"),
        ("cut", ConnectionError, "could not be downloaded.*Nothing was kept"),
        ("cut without length", ValueError, "corrupt.*Nothing was kept"),
        ("absent", ConnectionError, "404"),
    ],
)
def test_a_faulty_transfer_leaves_nothing_behind(upstream, tmp_path, fault, error, message):
    upstream.fault = fault
    with pytest.raises(error, match=f"(?s){message}"):
        gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url=upstream.url)
    assert kept(tmp_path) == []
    upstream.fault = None
    assert gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url=upstream.url).n_obs == 9


def test_nobody_listens(upstream, tmp_path):
    with pytest.raises(ConnectionError, match="check the connection"):
        gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url="http://127.0.0.1:9/")
    assert kept(tmp_path) == []


def test_a_damaged_copy_is_fetched_again(upstream, tmp_path):
    gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url=upstream.url)
    damaged = tmp_path / "ST-cnts" / "Y1.tsv.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:20])
    gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url=upstream.url)
    assert damaged.read_bytes() == whole
    assert upstream.asked[3:] == ["/data/ST-cnts/Y1.tsv.gz"]


def test_data_at_hand_is_used_first_and_verified(upstream, tmp_path, monkeypatch):
    gdml.datasets.her2st("Y1", cache_dir=tmp_path / "her2st", base_url=upstream.url)
    monkeypatch.setenv("GDML_DATA_DIR", str(tmp_path))
    # Y1 is at hand, Z2 is not
    gdml.datasets.her2st(["Y1", "Z2"], cache_dir=tmp_path / "cache", base_url=upstream.url)
    assert all("Z2" in p for p in upstream.asked[3:])
    (tmp_path / "her2st" / "ST-cnts" / "Y1.tsv.gz").write_bytes(b"other")
    with pytest.raises(ValueError, match="GDML_DATA_DIR"):
        gdml.datasets.her2st("Y1", cache_dir=tmp_path / "cache", base_url=upstream.url)


def test_default_cache_is_in_the_settings(upstream, tmp_path, monkeypatch):
    monkeypatch.setattr(gdml.settings, "cache_dir", tmp_path)
    gdml.datasets.her2st("Y1", base_url=upstream.url)
    own = tmp_path / "her2st" / "ST-cnts" / "own.tsv"
    own.write_text("own")
    assert gdml.settings.list_cache()["name"].tolist() == ["her2st"]
    gdml.settings.clear_cache("her2st")
    assert kept(tmp_path) == ["her2st/ST-cnts/own.tsv"] and gdml.settings.list_cache().empty


def test_an_error_of_the_disk_is_not_called_one_of_the_connection(upstream, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", full)
    with pytest.raises(OSError, match="No space left") as caught:
        gdml.datasets.her2st("Y1", cache_dir=tmp_path, base_url=upstream.url)
    assert not isinstance(caught.value, ConnectionError) and kept(tmp_path) == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [("C9", "no section 'C9'.*Did you mean"), (["c2"], "'C2'"), (["C2", "C2"], "each once"), ([], "one or more")],
)
def test_sections_that_cannot_be(sections, message):
    with pytest.raises(ValueError, match=message):
        gdml.datasets.her2st(sections)


def test_the_package_carries_the_hashes_of_36_sections():
    blobs = read_blobs("git_blobs.tsv")
    for folder, n in (("ST-cnts/", 36), ("ST-spotfiles/", 36), ("ST-imgs/", 36)):
        assert sum(p.startswith(folder) for p in blobs) == n
    assert all(len(h) == 40 for h in blobs.values())


@pytest.mark.real
def test_hashes_are_those_of_the_real_files(data_dir):
    blobs = read_blobs("git_blobs.tsv")
    found = [p for p in blobs if (data_dir / "her2st" / p).is_file()]
    assert len(found) == 15
    assert all(git_blob_hash(data_dir / "her2st" / p) == blobs[p] for p in found)
