// Devices and the runner of steps on them.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/check.h"
#include "cuda/cuda_driver.h"
#include "cuda/graph_runner.h"
#include "cuda/simulated_driver.h"
#include "cuda/staging.h"

namespace py = pybind11;

namespace simplear {
namespace {

py::dict to_dict(const DeviceProperties& p) {
  py::dict entry;
  entry["name"] = p.name;
  entry["capability"] = py::make_tuple(p.major, p.minor);
  entry["total_memory"] = p.total_memory;
  entry["num_multiprocessors"] = p.num_multiprocessors;
  entry["driver_version"] = p.driver_version;
  entry["runtime_version"] = p.runtime_version;
  return entry;
}

py::dict to_dict(const StepCounts& counts) {
  py::dict sizes;
  for (int i = 0; i < StepCounts::kCount; ++i) sizes[StepCounts::kNames[i]] = counts.at(i);
  return sizes;
}

// A device and the stream that copies are ordered on.
struct Device {
  explicit Device(DeviceId id) : driver(open_device(id)), stream(make_stream(driver)), staging(driver) {}

  Tensor upload(const Tensor& tensor) {
    const Tensor copy = device_zeros(driver, tensor.shape, tensor.dtype);
    staging.transfer(tensor, copy, stream.get());
    return copy;
  }
  Tensor download(const Tensor& tensor) {
    const Tensor copy = Tensor::zeros(tensor.shape, tensor.dtype);
    staging.transfer(tensor, copy, stream.get());
    return copy;
  }

  const std::shared_ptr<Driver> driver;
  const Handle<Driver::Stream> stream;
  Staging staging;
};

DeviceId id_from(const std::string& kind, int32_t index) {
  check(kind == "cuda" || kind == "simulated", ErrorKind::kInvalidRequest, "device: expected cuda or simulated, got ",
        kind);
  return {kind == "cuda" ? DeviceKind::kCuda : DeviceKind::kSimulated, index};
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("cuda_built", &is_cuda_built);
  m.def(
      "cuda_devices",
      [] {
        const DeviceList found = cuda_devices();
        py::list devices;
        for (const DeviceProperties& properties : found.devices) devices.append(to_dict(properties));
        return py::make_tuple(devices, found.problem, found.is_out_of_order);
      },
      "([properties of each GPU], why the list is empty, whether there is a driver all the same).");
  m.def(
      "describe_simulated_device",
      [](std::optional<size_t> total_memory, std::optional<std::pair<int, int>> capability) {
        DeviceProperties properties = default_simulated_device();
        if (total_memory) properties.total_memory = *total_memory;
        if (capability) std::tie(properties.major, properties.minor) = *capability;
        describe_simulated_device(properties);
      },
      py::kw_only(), py::arg("total_memory") = py::none(), py::arg("capability") = py::none(),
      "What the next simulated device is like; for tests.");

  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver", "What ops of a device are recorded for.");
  py::class_<Device>(m, "Device", "A GPU, or the simulated one of the tests.")
      .def(py::init(
               [](const std::string& kind, int32_t index) { return std::make_unique<Device>(id_from(kind, index)); }),
           py::arg("kind"), py::arg("index") = 0)
      .def_property_readonly("name", [](const Device& d) { return name_of(d.driver->id()); })
      .def_property_readonly("properties", [](const Device& d) { return to_dict(d.driver->properties()); })
      .def_property_readonly("free_memory", [](const Device& d) { return d.driver->free_memory(); })
      .def_property_readonly("driver", [](const Device& d) { return d.driver; })
      .def_property_readonly(
          "stream", [](const Device& d) { return d.driver->native_handle(d.stream.get()); },
          "The stream that copies are ordered on.")
      .def(
          "zeros",
          [](const Device& d, std::vector<int64_t> shape, const std::string& dtype) {
            return device_zeros(d.driver, std::move(shape), dtype_from_name(dtype));
          },
          py::arg("shape"), py::arg("dtype"), "A new tensor of zeros in the device's memory.")
      .def("upload", gil_free(&Device::upload), py::arg("tensor"), "A copy of a tensor of the host.")
      .def("download", gil_free(&Device::download), py::arg("tensor"), "A copy on the host of a tensor of this device.")
      .def(
          "copy",
          [](Device& d, const Tensor& source, const Tensor& target) {
            without_gil([&] { d.staging.transfer(source, target, d.stream.get()); });
          },
          py::arg("source"), py::arg("target"), "Copies between a tensor of the host and one of this device.")
      .def(
          "order",
          [](const Device& d, uint64_t earlier, uint64_t later) {
            order(d.driver, d.driver->adopt_stream(earlier), d.driver->adopt_stream(later));
          },
          py::arg("earlier"), py::arg("later"),
          "What is enqueued on the stream `later` from now on comes after what is on `earlier` already.")
      .def(
          "step_plan",
          [](const Device& d, const StepPlan& like) {
            return std::make_shared<StepPlan>(like.limits, [&](size_t bytes) {
              return device_zeros(d.driver, {static_cast<int64_t>(bytes)}, DType::kUInt8);
            });
          },
          py::arg("like"), "A StepPlan in the device's memory, with the limits of another one.");

  py::class_<GraphRunner, StepRunner, std::shared_ptr<GraphRunner>>(
      m, "GraphRunner", "Steps on a device, each one launch of a recorded graph.")
      .def(py::init([](std::shared_ptr<DeviceProgram> program, std::shared_ptr<StepPlan> plan, const Tensor& step,
                       const Tensor& drawn_token, const Tensor& drawn_log_prob, const Tensor& logits,
                       int32_t visual_offset) {
             return std::make_shared<GraphRunner>(std::move(program), std::move(plan),
                                                  StepHistory{step, drawn_token, drawn_log_prob}, logits,
                                                  visual_offset);
           }),
           py::kw_only(), py::arg("program"), py::arg("plan"), py::arg("step"), py::arg("drawn_token"),
           py::arg("drawn_log_prob"), py::arg("logits"), py::arg("visual_offset"))
      .def(
          "record_decoding",
          [](GraphRunner& runner, const StepPlan& plan) {
            without_gil([&] {
              for (const StepCounts& bucket : decode_buckets(plan.limits)) runner.record(bucket);
            });
          },
          py::arg("plan"), "Records the graphs of all steps that draw for guided images, one code or several of each.")
      .def_property_readonly("stream", [](const GraphRunner& runner) { return runner.native_stream(); })
      .def_property_readonly("num_graphs", &GraphRunner::num_graphs)
      .def_property_readonly("num_uploads", &GraphRunner::num_uploads);

  m.def(
      "bucket_for", [](const StepPlan& plan) { return to_dict(bucket_for(plan.counts(), plan.limits)); },
      py::arg("plan"), "The sizes that a step of this plan runs with on a device.");
  m.def(
      "all_buckets",
      [](const StepPlan& plan) {
        py::list all;
        for (const StepCounts& bucket : all_buckets(plan.limits)) all.append(to_dict(bucket));
        return all;
      },
      py::arg("plan"), "All sizes that a step with the limits of this plan may have.");
  m.def(
      "is_recorded", [](const StepPlan& plan) { return is_recorded(bucket_for(plan.counts(), plan.limits)); },
      py::arg("plan"), "Whether a step of this plan is one launch of a graph.");
  m.def(
      "pad",
      [](StepPlan& plan, int32_t num_codes) {
        const StepCounts bucket = bucket_for(plan.counts(), plan.limits);
        pad(plan, bucket, num_codes);
        plan.counts() = bucket;
      },
      py::arg("plan"), py::arg("num_codes"), "Fills a plan up to the sizes of its graph.");
}

}  // namespace simplear
