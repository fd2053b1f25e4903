// A device for tests: what a GPU does to a program, without a GPU.
//
// Its memory is host memory that nobody can touch but while the device executes (a stray access of the host is a
// segmentation fault at the very line), its kernels are host functions. It executes as late as it may: enqueued work
// runs when somebody waits for it and not before, so what forgot to wait, or changed memory that a copy was still to
// read, comes out wrong every time and not once in a thousand. Copies are checked against the allocations, copies of
// pageable host memory and waiting during a capture are refused, freed memory is overwritten. It says nothing about
// speed.
//
// It is never chosen by "auto"; nobody gets it but who asks for device="simulated".
#pragma once

#include "cuda/driver.h"

namespace simplear {

// The next one that is opened will be like this. For tests of what happens on other devices.
void describe_simulated_device(const DeviceProperties& properties);
DeviceProperties default_simulated_device();

std::shared_ptr<Driver> make_simulated_driver(DeviceId id);

}  // namespace simplear
