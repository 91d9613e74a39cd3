from latentdiff.evaluation.summary import rows, table

FOUR = {"background": 0.0, "colour": 0.9, "position": 0.8, "size": 0.7, "shape": 0.6}
TEXT = {
    "results": {
        "captions": {
            "one_object": FOUR,
            "two_objects": {},
            "shuffled": {"one_object": {name: value / 2 for name, value in FOUR.items()}},
            "reconstructions": {"one_object": dict.fromkeys(FOUR, 1.0)},
        },
        "frechet": {"fd_randconv-v1_n500": 0.05},
    },
    "controls": {"gaussian": {"frechet": {"fd_randconv-v1_n500": 3.0}}, "training_images": {"frechet": {"fd": 0.01}}},
    "card": {},
}
SMALL = {
    "results": {"low_resolution": {"low_res_psnr": 40.0}, "own": {"x": 1.0}},
    "controls": {"bicubic": {"low_resolution": {"low_res_psnr": 38.765}, "frechet": {}}},
}


def test_each_number_stands_beside_that_of_the_controls():
    found = {row.measure.title: row.values for row in rows("text", TEXT)}
    assert list(found) == ["attributes right, one object", "shapes right, one object", "Fréchet distance"]
    first = found["attributes right, one object"]  # the background is not among them
    assert {name: round(value, 6) for name, value in first.items()} == {
        "samples": 0.75,
        "shuffled": 0.375,
        "reconstructions": 1.0,
    }
    assert found["shapes right, one object"]["samples"] == 0.6
    assert found["Fréchet distance"] == {"samples": 0.05, "gaussian": 3.0, "training_images": 0.01}


def test_what_has_no_measure_or_no_number_is_left_to_the_file():
    found = [*rows("small", SMALL), *rows("small", {"results": {"frechet": {}, "known": {"psnr": "nan"}}})]
    assert [row.values for row in found] == [{"samples": 40.0, "bicubic": 38.765}]


def test_the_table_has_the_columns_that_are_needed_and_each_name_once():
    text = table([*rows("text", TEXT), *rows("small", SMALL)])
    assert text.splitlines() == [
        "| model | measure | samples | shuffled | reconstructions | bicubic | Gaussian latents | training images |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| text | attributes right, one object | 0.750 | 0.375 | 1.000 |  |  |  |",
        "|  | shapes right, one object | 0.600 | 0.300 | 1.000 |  |  |  |",
        "|  | Fréchet distance | 0.050 |  |  |  | 3.000 | 0.010 |",
        "| small | PSNR of the image reduced again, dB | 40.00 |  |  | 38.77 |  |  |",
    ]
