import re

import numpy as np
import pytest
import xarray as xr

from support import figures


def test_hover_matrix_tells_source_target_and_value():
    coords = {"source": ["package:a", "b", "c"], "target": ["b", "c"]}
    values = xr.DataArray([[0.125, 0.25], [9, 0.5], [0.75, 9]], coords, ("source", "target"))
    html = figures.hover_matrix(values, digits=3).to_html()
    told = re.findall(r'title="([^"]+)"', html)
    assert told == ["a → b: 0.125", "a → c: 0.250", "b → c: 0.500", "c → b: 0.750"]
    turned = figures.hover_matrix(values.transpose("target", "source"), digits=3).to_html()
    assert re.findall(r'title="([^"]+)"', turned) == told
    colours = re.findall(r"background-color: (#\w+)", html)
    assert len(set(colours)) >= 5 and "#e6e6e6" in colours  # one for each value, and grey for a model beside itself


def test_signed_maps_are_centred_on_white_and_others_start_at_black():
    _, axes = figures.plt.subplots(1, 2)
    signed = np.linspace(-1, 3, 100).reshape(10, 10)
    figures.draw_map(axes[0], signed)
    figures.draw_map(axes[1], abs(signed))
    low, high = axes[0].images[0].get_clim()
    assert low == -high and 2.5 < high < 3
    assert axes[1].images[0].get_clim()[0] == 0
    figures.plt.close("all")


def test_an_overlay_puts_shares_of_the_sides_onto_the_picture():
    _, ax = figures.plt.subplots()
    heat = np.zeros((2, 4))
    heat[1, 3] = 2
    figures.overlay(ax, np.zeros((20, 30, 3)), heat=heat, points=[[0.25, 0.75]], boxes=[[0.1, 0.2, 0.5, 0.9, 0.7]])
    picture, over = ax.images
    assert picture.get_extent() == over.get_extent() == [0, 1, 1, 0]
    assert ax.get_aspect() == 20 / 30  # a unit of the picture's height is shorter than one of its width
    assert over.get_alpha()[1, 3] == 1 and over.get_alpha().sum() == 1
    points, box = (line.get_xydata() for line in ax.lines)
    np.testing.assert_allclose(points, [[0.25, 0.75]])
    np.testing.assert_allclose([box.min(0), box.max(0)], [[0.1, 0.2], [0.5, 0.9]])
    figures.plt.close("all")


def test_heat_forgets_the_sign_and_averages_over_squares():
    rng = np.random.default_rng(0)
    maps = xr.DataArray(rng.normal(size=(2, 3, 9, 13)), dims=("model", "image", "y", "x"))
    heat = figures.heat(maps, block=4)
    assert heat.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(heat[1, 2, 0, 2], abs(maps.values[1, 2, :4, 8:12]).mean())
    np.testing.assert_array_equal(heat, figures.heat(-maps, block=4))
    with pytest.raises(ValueError, match="no square of 10 pixels"):
        figures.heat(maps, block=10)


def test_a_heat_grid_has_the_image_and_every_model_beside_it():
    rng = np.random.default_rng(0)
    images = xr.DataArray(rng.random((2, 8, 8, 3)), dims=("image", "y", "x", "channel"))
    coords = {"model": [f"package:net_{k}" for k in range(5)]}
    maps = xr.DataArray(rng.normal(size=(5, 2, 8, 8)), coords, ("model", "image", "y", "x"))
    axes = np.reshape(figures.heat_grid(images, maps, columns=3).axes, (2, 2, 4))
    drawn = [[ax.get_title() for ax in row if ax.images] for row in axes.reshape(4, 4)]
    assert drawn == 2 * [["image", "net\n0", "net\n1", "net\n2"], ["net\n3", "net\n4"]]
    np.testing.assert_array_equal(axes[1, 0, 0].images[0].get_array(), images[1])
    np.testing.assert_allclose(axes[1, 1, 2].images[0].get_array(), figures.heat(maps[4, 1]))
    figures.plt.close("all")
