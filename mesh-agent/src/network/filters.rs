//! EDGE: the filters of the kernel's traffic control that an interface has.

use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::netlink::{Error, Network, collect};

impl Network {
    /// The filters in the clsact qdisc of an interface, of both directions; none without one.
    pub(super) async fn filters(&self, index: u32) -> Result<Vec<TcMessage>, Error> {
        let what = "listing filters";
        let get = || self.handle.traffic_filter(index.cast_signed()).get();
        let mut filters = collect(what, get().ingress().execute()).await?;
        filters.extend(collect(what, get().egress().execute()).await?);
        Ok(filters)
    }

    /// The names of the BPF filters in the clsact qdisc of an interface; none without one.
    ///
    /// # Errors
    ///
    /// The kernel's answer; the interface is gone.
    pub async fn bpf_filters(&self, index: u32) -> Result<Vec<String>, Error> {
        let filters = self.filters(index).await?;
        Ok(filters.iter().filter_map(bpf_name).collect())
    }
}

fn bpf_name(filter: &TcMessage) -> Option<String> {
    let options = filter.attributes.iter().filter_map(|it| match it {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|it| match it {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}
