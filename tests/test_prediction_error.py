"""Errors of predictions: against the truth, of recorded inputs, on devices that have no float64."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from no_float64 import NoFloat64
from ticache_models import Recorder, ddim, make_inputs, make_unet

import ticache
from ticache.prediction_error import _errors
from ticache.tuning.metrics import psnr


def test_errors_are_computed_without_float64_on_the_device() -> None:
    prediction, truth, weights = torch.rand(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = _errors(prediction, truth, weights)
    assert expected["inside"] is not None
    on_device = [tensor.as_subclass(NoFloat64) for tensor in (prediction, truth, weights)]
    assert _errors(on_device[0], on_device[1], on_device[2]) == expected


@pytest.mark.parametrize("region", [None, torch.eye(4)])
def test_psnr_is_computed_without_float64_on_the_device(region: torch.Tensor | None) -> None:
    result, reference = torch.rand(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = psnr(result, reference, region)
    assert psnr(result.as_subclass(NoFloat64), reference.as_subclass(NoFloat64), region) == expected


def test_errors_are_true_where_a_loop_changes_its_sample_in_place() -> None:
    """They are those of the features that the run predicted, against a full run from the same samples."""
    unet, scheduler = make_unet(), ddim()
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(9)
    site = unet.get_submodule("up_blocks.1.attentions.0")
    samples = []
    with ticache.apply(unet, N=3, order=0, scheduler=scheduler, keep=True) as session, torch.no_grad():
        recorder = Recorder(site)
        for t in scheduler.timesteps:
            samples.append(sample.clone())
            unet(sample, t, **conditions)
            sample.mul_(0.7)
        recorder.remove()
        held = session.report().to_dict()["held_bytes"]
        entries = session.report(reference=True).to_dict()["reference"]
        full_steps = session.report().to_dict()["streams"][0]["full"]
        kept = sum(tensor.nbytes for sites in session.kept().values() for ts in sites.values() for tensor in ts)
    assert held > kept + samples[0].nbytes
    recorder = Recorder(site)
    with torch.no_grad():
        for t, step_sample in zip(scheduler.timesteps, samples, strict=True):
            unet(step_sample, t, **conditions)
    recorder.remove()
    truth = recorder.outputs
    assert len(entries) == 3
    for entry in entries:
        reused = truth[max(step for step in full_steps if step < entry["step"])]
        true_error = float((reused - truth[entry["step"]]).norm() / truth[entry["step"]].norm())
        assert entry["error"] == pytest.approx(true_error, rel=1e-4)
        assert entry["error"] > 0.01


def test_inputs_are_held_only_when_asked() -> None:
    unet, scheduler = make_unet(), ddim()
    sample, conditions = make_inputs(batch=1)
    scheduler.set_timesteps(6)
    with ticache.apply(unet, N=3, scheduler=scheduler) as session, torch.no_grad():
        inputs = []
        for t in scheduler.timesteps:
            inputs.append(weakref.ref(sample := sample.clone()))
            unet(sample, t, **conditions)
        del sample
        gc.collect()
        assert not any(reference() is not None for reference in inputs)
        report = session.report(reference=True)
    assert report.to_dict()["reference"] == []
    assert "the calls' inputs were not recorded; apply with keep=True and run again" in str(report)
